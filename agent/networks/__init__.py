"""Networks: a plain module of one member, and a population of them in one buffer."""
