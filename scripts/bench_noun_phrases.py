"""Captions per second that one core turns into noun phrases; the goal is 5,000."""

from __future__ import annotations

import time

from odise_pl.data.noun_phrases import extract_phrases, tag

# of the length and kind of COCO's, whose mean is ten words
CAPTIONS = (
    "A man riding a wave on top of a surfboard.",
    "Two dogs are playing with a red frisbee in the park.",
    "A bathroom with a white toilet and a large mirror above the sink.",
    "A group of people sitting around a wooden table.",
    "A yellow school bus is parked near the side of the road.",
    "Several brown horses graze on a green hill.",
)


def per_second(repeats: int = 200, rounds: int = 5) -> tuple[float, float]:
    """Captions per second, tagged alone and with their phrases: the best of several rounds each."""
    extract_phrases(CAPTIONS[0])  # loads the lexicon
    best = []
    for function in (tag, extract_phrases):
        times = []
        for _ in range(rounds):
            start = time.process_time()
            for _ in range(repeats):
                for caption in CAPTIONS:
                    function(caption)
            times.append(time.process_time() - start)
        best.append(repeats * len(CAPTIONS) / min(times))
    return best[0], best[1]


if __name__ == "__main__":
    tagged, phrases = per_second()
    print(f"captions per second and core: {tagged:.0f} tagged, {phrases:.0f} turned into phrases")
