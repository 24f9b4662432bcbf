"""Evaluation of trained models: bounds on the likelihood, and what the latents are used for."""
