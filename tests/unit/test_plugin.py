"""What the processes that vLLM starts do at their start."""

import threading

from tqdm import tqdm

from visurf_ray.weights import plugin


def test_tqdm_makes_no_named_semaphore_which_a_killed_process_would_leave(monkeypatch):
    monkeypatch.delattr(tqdm, "_lock", raising=False)
    for factory in (plugin.WeightTransferEngineFactory, plugin.WeightTransferTrainerFactory):
        monkeypatch.setattr(factory, "register_engine", lambda *_: None)
    monkeypatch.setattr(plugin, "_end_with_parent", lambda: None)
    monkeypatch.setattr(plugin.multiprocessing, "parent_process", lambda: "vLLM's")
    plugin.register.__wrapped__()
    assert isinstance(tqdm.get_lock(), type(threading.RLock()))
