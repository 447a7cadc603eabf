"""How good the gradients are that a policy learns from."""
