"""Several processes, several devices: who this process is, and a model on all of them."""

from nercrf import lazy_names

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "BatchDataParallel": "devices",
        "ProcessInfo": "processes",
        "all_reduce_sum": "processes",
        "barrier": "processes",
        "broadcast_json": "processes",
        "clip_gradients": "devices",
        "close_distributed": "processes",
        "exchange_gradients": "devices",
        "forward_each": "devices",
        "gather_json": "processes",
        "get_rank": "processes",
        "get_world_size": "processes",
        "init_distributed": "processes",
        "is_main_process": "processes",
        "is_sharded": "devices",
        "load_whole_weights": "devices",
        "main_process_first": "processes",
        "share_state": "devices",
        "shard_modules": "devices",
        "unwrap_model": "devices",
        "whole_parameters": "devices",
        "whole_tensors": "devices",
        "whole_weights": "devices",
        "wrap_model": "devices",
    },
)
