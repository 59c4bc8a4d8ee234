"""Launches the decode kernel of latents."""

import dataclasses

from rpa_kernels.decode import launch as decode
from rpa_kernels.mla_decode.kernel import latent_decode_kernel

launch = dataclasses.replace(decode.launch, kernel=latent_decode_kernel)
