"""What comparisons share that fine-tune on real images: their settings, how they compute, and axes over seeds."""
