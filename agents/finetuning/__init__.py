"""The long fine-tune: from a choice of layer groups to a model that plain diffusers and peft load."""
