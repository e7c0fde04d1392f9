"""fastbp: compiled backpropagation for dense networks and computational graphs of matrices."""

from fastbp import data, graph, layers, losses, optim, pictures
from fastbp.backends import available_backends, use_backend
from fastbp.backends.threads import get_num_threads, set_num_threads
from fastbp.errors import DivergedError, FastbpError, InputError
from fastbp.functional import dense, dense_backward
from fastbp.history import History
from fastbp.layered import Network
from fastbp.network import MLP, load

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "DivergedError",
    "FastbpError",
    "History",
    "InputError",
    "Network",
    "available_backends",
    "data",
    "dense",
    "dense_backward",
    "get_num_threads",
    "graph",
    "layers",
    "load",
    "losses",
    "optim",
    "pictures",
    "set_num_threads",
    "use_backend",
]
