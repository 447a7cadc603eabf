"""Derivatives by hand of networks, critics, losses and estimators, and the update made of them.

Version 0.1.0 trained with these. What the product differentiates automatically is held to them.
"""
