"""The engines `deepspeed` and `fsdp`: transformers' own models, divided among ranks by DeepSpeed's ZeRO or by FSDP2.

PEFT has the adapters. Data, objectives, loop, events and the form of what is left are those of the Megatron engine.
"""
