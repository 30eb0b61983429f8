"""Everything that knows diffusers: samplers as coefficient tables, models as policies, LoRA."""
