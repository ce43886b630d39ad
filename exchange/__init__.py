"""Adapters and encoders in the forms that PEFT and Hugging Face read."""
