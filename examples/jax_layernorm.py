"""A LayerNorm written in JAX, its parameters in a tree, against torch's."""

import jax.numpy as jnp
import torch

import parity


def layer_norm(params, x):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(variance + 1e-5) * params["scale"] + params["offset"]


params = {"scale": jnp.ones(6), "offset": jnp.zeros(6)}
mine = parity.jax(layer_norm, params)
print(parity.check(mine, torch.nn.LayerNorm(6), (4, 6), rungs=("float64", "float32")))
