"""Writes checkpoints in the official layout, with random weights."""

import numpy as np


class State(dict):
    """A state_dict to which the layers of the official networks are added."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)

    def layer(self, name, *shape):
        """Adds a weight (out, in, *window) and its bias. A single number is a normalization."""
        for part, size in (("weight", shape), ("bias", shape[:1])):
            self[f"{name}.{part}"] = self.rng.normal(scale=0.1, size=size).astype(np.float32)

    def block(self, name, inputs, outputs, embed=None, z=None):
        self.layer(f"{name}.in_layers.0", inputs)
        self.layer(f"{name}.in_layers.2", outputs, inputs, 3, 3)
        if embed:
            self.layer(f"{name}.emb_layers.1", 2 * outputs, embed)
            self.layer(f"{name}.out_layers.0", outputs)
            self.layer(f"{name}.out_layers.3", outputs, outputs, 3, 3)
            if z:
                self.layer(f"{name}.cond_emb_layers.1", outputs, z)
        if inputs != outputs:
            self.layer(f"{name}.skip_connection", outputs, inputs, 1, 1)

    def attention(self, name, channels):
        self.layer(f"{name}.norm", channels)
        self.layer(f"{name}.qkv", 3 * channels, channels, 1)
        self.layer(f"{name}.proj_out", channels, channels, 1)

    def down(self, prefix, base, mults, size, attention, **cond):
        """Adds input blocks and middle. Returns the channels of every input block."""
        channels = [base * mults[0]]
        self.layer(f"{prefix}input_blocks.0.0", channels[0], 3, 3, 3)
        for level, mult in enumerate(mults):
            for _ in range(2):
                name = f"{prefix}input_blocks.{len(channels)}"
                self.block(f"{name}.0", channels[-1], mult * base, **cond)
                if size in attention:
                    self.attention(f"{name}.1", mult * base)
                channels.append(mult * base)
            if level != len(mults) - 1:
                self.block(f"{prefix}input_blocks.{len(channels)}.0", channels[-1], channels[-1], **cond)
                channels.append(channels[-1])
                size //= 2
        self.block(f"{prefix}middle_block.0", channels[-1], channels[-1], **cond)
        self.attention(f"{prefix}middle_block.1", channels[-1])
        self.block(f"{prefix}middle_block.2", channels[-1], channels[-1], **cond)
        return channels

    def unet(self, base, mults, size, attention, embed, z):
        time = "time_embed.time_embed" if z else "time_embed"
        self.layer(f"{time}.0", embed, base)
        self.layer(f"{time}.2", embed, embed)
        cond = dict(embed=embed, z=z)
        skips = self.down("", base, mults, size, attention, **cond)
        size //= 2 ** (len(mults) - 1)
        channels, index = skips[-1], 0
        for level, mult in reversed(list(enumerate(mults))):
            for i in range(3):
                name, entry = f"output_blocks.{index}", 1
                self.block(f"{name}.0", channels + skips.pop(), mult * base, **cond)
                channels = mult * base
                if size in attention:
                    self.attention(f"{name}.1", channels)
                    entry = 2
                if level and i == 2:
                    self.block(f"{name}.{entry}", channels, channels, **cond)
                    size *= 2
                index += 1
        assert not skips
        self.layer("out.0", channels)
        self.layer("out.2", 3, channels, 3, 3)

    def encoder(self, base, mults, size, attention, z):
        channels = self.down("encoder.", base, mults, size, attention)[-1]
        self.layer("encoder.out.0", channels)
        self.layer("encoder.out.3", z, channels, 1, 1)

    def latent(self, z, width, num_layers):
        self.layer("latent_net.time_embed.0", z, 64)
        self.layer("latent_net.time_embed.2", z, z)
        for i in range(num_layers - 1):
            name = f"latent_net.layers.{i}"
            self.layer(f"{name}.linear", width, z if i == 0 else width + z)
            self.layer(f"{name}.linear_emb", width, z)
            self.layer(f"{name}.norm", width)
            for part in ("weight", "bias"):
                self[f"{name}.cond_layers.1.{part}"] = self[f"{name}.linear_emb.{part}"]
        self.layer(f"latent_net.layers.{num_layers - 1}.linear", z, width + z)


def official_state(
    *, base=32, mults=(1, 2), encoder_mults=(1, 2, 2), size=16, attention=(8,), embed=48, z=24, latent=(40, 3)
):
    """Returns the weights of a network by official name.

    `z=None` makes the DDIM baseline, `latent=None` an autoencoder without latent DDIM.
    """
    state = State()
    state.unet(base, mults, size, attention, embed, z)
    if z:
        state.encoder(base, encoder_mults, size, attention, z)
        if latent:
            state.latent(z, *latent)
    return state


def official_checkpoint(state, *, z=24, size=16, hyper=None, statistics=True):
    """Returns a checkpoint: weights before and after averaging, and the entries of the trainer."""
    tensors = {f"model.{name}": array + 1 for name, array in state.items()}
    tensors |= {f"ema_model.{name}": array for name, array in state.items()}
    tensors["x_T"] = np.zeros((4, 3, size, size), np.float32)
    if z and statistics:
        tensors |= {"conds_mean": np.full((1, z), 0.5, np.float32), "conds_std": np.full((1, z), 2, np.float32)}
    hyper = dict(img_size=size, name="made_here", batch_size=128, T=1000) if hyper is None else hyper
    return {"epoch": 1, "global_step": 1000, "state_dict": tensors, "hyper_parameters": hyper}
