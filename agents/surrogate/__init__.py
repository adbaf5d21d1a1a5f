"""Models of evaluations: what a mask would lead to, and how sure that is, without a fine-tune."""
