"""Fuzzing: sound bytes of every kind that comes from outside, mutated at random; `python -m tests.fuzz` goes on for long."""
