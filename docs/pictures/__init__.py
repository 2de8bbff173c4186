"""Pictures of the measured figures, each with its description in words."""
