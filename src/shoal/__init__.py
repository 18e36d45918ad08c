"""Shoal: language models that no single machine can hold, on a swarm of peers."""
