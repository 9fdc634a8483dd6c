"""What a run is asked to be: options, worlds and algorithms by name, a configuration of them, and the job it stands for."""
