"""mmjax: train, adapt, evaluate and export multimodal models in JAX.

Importing the package loads nothing else: no JAX, no device. Import the parts you use (`from mmjax.core.batch import
Batch`).
"""

__version__ = "0.1.0"
