"""Partitions, modality sets and task sets by name."""

from __future__ import annotations

from polyfed.registry import Registry
from polyfed.scenario import modalities, partition, tasks
from polyfed.scenario.holdings import Holdings
from polyfed.scenario.parts import IntArray

# Called as ``builder(pool, tasks, clients, seed, **options)``: positions in the pool, one array per client.
PARTITIONS: Registry[list[IntArray]] = Registry("partition")
PARTITIONS.add("iid", partition.iid)
PARTITIONS.add("dirichlet", partition.dirichlet)
PARTITIONS.add("shards", partition.shards)
PARTITIONS.add("quantity", partition.quantity)
PARTITIONS.add("natural", partition.natural)

# Called as ``builder(names, clients, seed, **options)`` with the modalities of the dataset.
MODALITY_SETS: Registry[Holdings] = Registry("modality skew")
MODALITY_SETS.add("all", modalities.everything)
MODALITY_SETS.add("mixed", modalities.mixed)
MODALITY_SETS.add("n-of-m", modalities.n_of_m)
MODALITY_SETS.add("sample-skew", modalities.sample_skew)
MODALITY_SETS.add("rates", modalities.rated)
MODALITY_SETS.add("groups", modalities.grouped)
MODALITY_SETS.add("listed", modalities.listed)

# Called as ``builder(names, clients, seed, **options)`` with the tasks in use.
TASK_SETS: Registry[Holdings] = Registry("task skew")
TASK_SETS.add("all", tasks.everything)
TASK_SETS.add("rates", tasks.rated)
TASK_SETS.add("groups", tasks.grouped)
TASK_SETS.add("listed", tasks.listed)
