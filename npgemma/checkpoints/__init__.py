"""What a model is called on disk: configs, tables of tensor names, adapters, and the memory that a run will need."""
