"""The pipeline in Ray actors: where the stages are placed, joined and watched."""
