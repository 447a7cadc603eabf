"""Off-policy actor-critic for discrete action spaces, with straight-through Gumbel-softmax actors."""

from agent.policy import Policy, PolicyError

__all__ = ["Policy", "PolicyError"]
