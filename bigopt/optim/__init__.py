"""From a mean gradient to a step: transforms, schedules and the methods that ask and are told. NumPy only.

The three parts compose. A `Transform` turns the gradient of step t into a change of the parameters; a schedule gives
its learning rate; a `Method` decides what the next Map-Reduce must evaluate (`Ask`) and turns the sums that come back
into a finished update (`Step`). None of them knows an engine, a model or a dataset.
"""
