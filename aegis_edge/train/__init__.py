"""LoRA training of a guard on CPU: probe, fine-tune, calibrate, write an adapter."""
