"""Every adaptation method with several masks: how much may learn, against quality and memorization."""
