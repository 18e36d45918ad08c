"""Stream a text through a swarm: python examples/stream.py TICKET [PROMPT]"""

import sys

import shoal

ticket, prompt = sys.argv[1], " ".join(sys.argv[2:]) or "The sea is"
with shoal.connect(peers=[ticket]) as model:
    print(prompt, end="", flush=True)
    for text in model.stream(prompt, max_tokens=32, temperature=0.8, seed=1):
        print(text, end="", flush=True)
    print()
    reply = model.last
    print(f"{reply.decode_tokens_per_s:.1f} tokens/s through {len(model.last_route)} servers")
