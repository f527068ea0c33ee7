"""Parts of `make_demo_recipe.py`: a dense model in torch, its text, the split and the tuning."""
