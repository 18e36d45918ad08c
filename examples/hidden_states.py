"""Look at the hidden states between two servers: python examples/hidden_states.py TICKET"""

import asyncio
import sys

import torch

import shoal


async def main() -> None:
    async with shoal.AsyncClient([sys.argv[1]]) as client:
        model = await client.find_model()
        half = model.num_blocks // 2
        rows = torch.randn(5, model.hidden_size, generator=torch.Generator().manual_seed(0))
        async with client.session(model, shoal.Span(0, half), max_tokens=16) as first:
            middle = await first.step(rows)
        async with client.session(model, shoal.Span(half, model.num_blocks), max_tokens=16) as second:
            output = await second.step(middle)
            await second.rewind(3)
            same = torch.equal(await second.step(middle[3:]), output[3:])
        print(
            f"{model.name}: norm {middle.norm():.3f} after {half} blocks, {output.norm():.3f} after all; rewound equal: {same}"
        )


asyncio.run(main())
