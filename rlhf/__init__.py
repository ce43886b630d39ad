"""Preference tuning with adapters: pairs, a reward model, a policy, and soups of policies."""
