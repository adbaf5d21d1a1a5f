"""The promises on speed, as ratios measured side by side in one run."""
