"""What `MorphingTrainer` changes in `transformers.Trainer`, one concern a layer, each built on the one before.

Trainer
-> optimizing      makes the optimizer, loads it strictly
-> chunking        the loss for some tokens at a time
-> sharding        what differs where FSDP2 divides the model
-> exporting       the trained model, plain or with adapters
-> publishing      what goes to the Hub, and when
-> snapshots       a checkpoint in memory
-> beside          a checkpoint that is written while training goes on
-> saving          a checkpoint that is whole or not there
-> checkpointing   finds and loads one
-> pressure        saves when memory is short
-> recovering      repeats a step that ran out of memory
-> segments        an epoch in parts, between which models and batches change
-> evaluating      metrics and examples
-> observing       statistics and analysis
-> finite          losses and gradients that are NaN
-> rescuing        goes back to a checkpoint, or leaves an update out
-> lines           log lines of the whole run, over restarts
-> ending          what the last step still owes
-> guarding        guarded operations, judged by the loss after them
-> operating       asks the schedule, applies what is due
"""
