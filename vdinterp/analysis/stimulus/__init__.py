"""What an analysis looks at: noised clips, a contrast of two, and whether the model works on them at all."""
