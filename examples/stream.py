"""Stream a text through a swarm: python examples/stream.py TICKET [PROMPT]"""

import sys

import shoal

ticket, prompt = sys.argv[1], " ".join(sys.argv[2:]) or "The sea is"
with shoal.connect(peers=[ticket]) as model:
    print(prompt, end="", flush=True)
    reply = model.stream(prompt, max_tokens=32, temperature=0.8, seed=1)
    for text in reply:
        print(text, end="", flush=True)
    print()
    print(f"{reply.timings.decode_tokens_per_s:.1f} tokens/s through {len(reply.route)} servers")
