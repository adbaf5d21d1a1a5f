"""Where a policy learns without a single fine-tune: on tasks that were measured before, or in a model of one."""
