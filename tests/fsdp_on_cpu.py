"""`bert_snli.finetune` with FSDP2 over gloo: Accelerate shards for accelerators alone, and is told that this is one."""

from __future__ import annotations

import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

from bert_snli import finetune

if __name__ == "__main__":
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
    sys.exit(finetune.main())
