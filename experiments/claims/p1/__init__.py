"""Claims on the first paper: "On The Global Convergence Of Online RLHF With Neural Parametrization", 2410.15610."""
