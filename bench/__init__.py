"""What adapters, rules and linearizations cost: `python -m bench`."""
