"""The MLX engine: mlx-lm computes, routed experts are streamed into arrays that MLX owns."""
