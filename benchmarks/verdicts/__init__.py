"""How often the verdict is right: labelled trainings as data, gradwell's verdict and the peers' rules beside it.

`cases` holds the trainings as data, `families` the networks in plain PyTorch, `training` the loop with its faults,
`labels` the truth (outcomes of training, and a float64 measurement without gradwell), `peers` the rules of other tools,
`ours` gradwell's verdict, `score` the tables.

    python -m benchmarks.verdicts [--only ID] [--seeds 0 1 2] [--label] [--out FILE] [--join FILE ...]
                                  [--again FILE ...] [--docs]
"""
