"""What a selection acts on: tasks, evaluators, the store of what was paid for, and the Gymnasium environment."""

import gymnasium

gymnasium.register(id="memcontrol/ParameterSelection-v0", entry_point="envs.selection:make_env")
