"""Train an experiment in memory and print its results as a table. Needs nothing but polyfed."""

import polyfed

experiment = polyfed.load(changes={"rounds": 5, "method.name": "fedprox", "method.mu": 0.1})
result = polyfed.run(experiment)  # with out="runs/quick" everything is kept in that folder, with a report

for row in result.rows():  # or: pandas.DataFrame(result.rows())
    if row["metric"] == "accuracy":
        print(f"client {row['client']:2}  {row['modalities']:12} {row['task']:7} {row['value']:.3f}")
