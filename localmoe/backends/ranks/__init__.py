"""Several processes that run one model together: how they talk, and what they tell each other."""
