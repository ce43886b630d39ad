"""A small generated English: lexicon and grammar of written.py and pretrain/bert.py.

    concept    a tuple of synonyms such as ("dog", "hound"): which one is said is drawn each time
    phrase     the [adjective] noun
    event      doer, verb, other: told in the active, the passive or as a cleft, with one meaning
    quantified every | some | no | not every, then a noun and a verb phrase

Words carry the usual English endings. Sentences are lower case, without a full stop, at most
sixteen words. Nothing here knows of tasks or labels; every draw comes from the generator given.
"""

PEOPLE = [("doctor", "physician"), ("boy", "lad"), ("girl", "lass"), ("burglar", "robber"),
          ("teacher", "tutor"), ("soldier", "trooper"), ("lawyer", "attorney"),
          ("sailor", "mariner"), ("cook", "chef"), ("farmer", "grower"), ("singer", "vocalist"),
          ("author", "writer"), ("guard", "sentry"), ("pilot", "aviator")]
ANIMALS = [("dog", "hound"), ("cat", "kitty"), ("rabbit", "bunny"), ("horse", "steed"),
           ("pig", "hog"), ("snake", "serpent"), ("frog", "toad"), ("donkey", "mule"),
           ("hen", "chicken"), ("parrot", "macaw"), ("rat", "rodent"), ("bug", "insect")]
MACHINES = [("robot", "android"), ("car", "automobile"), ("truck", "lorry"), ("jet", "plane"),
            ("ship", "vessel"), ("train", "locomotive"), ("drone", "copter"), ("crane", "hoist"),
            ("tractor", "harvester"), ("taxi", "cab")]
KINDS = {"person": PEOPLE, "animal": ANIMALS, "machine": MACHINES}
WOMEN = "anna berta clara dora emma flora greta hanna iris julia karin lena".split()
MEN = "adam bruno carl david emil fritz george hugo ivan jakob konrad leon".split()
PLACES = [("forest", "wood"), ("road", "street"), ("house", "home"), ("shop", "store"),
          ("lake", "pond"), ("garden", "yard"), ("bridge",), ("tower",), ("market",), ("river",)]
WORKS = [("film", "movie"), ("meal", "dinner"), ("song", "tune"), ("book", "novel"),
         ("play", "drama"), ("hotel", "inn"), ("trip", "journey"), ("soup", "broth"),
         ("speech", "talk"), ("game", "match")]
TRAITS = [("big", "large"), ("small", "little"), ("old", "aged"), ("young", "youthful"),
          ("quick", "fast"), ("quiet", "silent"), ("thin", "slim"), ("tired", "weary"),
          ("red",), ("blue",), ("green",), ("brown",), ("black",), ("white",)]
STATES = [("tired", "weary"), ("angry", "furious"), ("happy", "glad"), ("sick", "ill"),
          ("hungry", "starving"), ("lost", "astray"), ("busy", "occupied"), ("brave", "bold")]
GOOD = [("good", "fine"), ("great", "superb"), ("lovely", "charming"), ("pleasant", "nice"),
        ("clever", "smart"), ("delightful", "wonderful"), ("exciting", "thrilling")]
BAD = [("bad", "poor"), ("awful", "terrible"), ("dull", "boring"), ("ugly", "hideous"),
       ("stupid", "silly"), ("nasty", "horrid"), ("tedious", "dreary")]
TRANSITIVE = [("chase", "pursue"), ("help", "assist"), ("watch", "observe"), ("follow", "trail"),
              ("call", "summon"), ("push", "shove"), ("carry", "haul"), ("greet", "welcome"),
              ("scare", "frighten"), ("stop", "halt"), ("protect", "shield"),
              ("praise", "applaud"), ("trick", "fool"), ("touch", "tap"), ("save", "rescue")]
INTRANSITIVE = [("rest", "relax"), ("laugh", "chuckle"), ("shout", "yell"), ("dance", "waltz"),
                ("jump", "hop"), ("wait", "linger"), ("work", "labour"), ("talk", "chat"),
                ("hurry", "rush"), ("cry", "sob"), ("smile", "grin"), ("listen",), ("arrive",)]
DOUBLED = {"stop", "tap", "hop", "chat", "sob", "grin"}            # stopped, not stoped
QUANTIFIERS = ("every", "some", "no", "not every")
FUNCTION_WORDS = """the a an every some no not that was by it near and but did before after later
    earlier because he she although nobody everybody found very , is who first then so people only
    liked disliked loved hated one two three four man woman women""".split()


def pick(rng, options):
    """One of a sequence, uniformly."""
    return options[int(rng.random() * len(options))]


def draw(rng, options, n):
    """n different ones of a sequence, in random order."""
    return [options[i] for i in rng.permutation(len(options))[:n]]


def chance(rng, p=0.5):
    """True with probability p."""
    return rng.random() < p


def ending_s(word):
    """dogs, ponies, wishes: the plural of a noun and the third person of a verb."""
    if word.endswith("y") and word[-2] not in "aeo":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")


def past(verb):
    """chased, carried, stopped: the past tense and the participle."""
    if verb in DOUBLED:
        return verb + verb[-1] + "ed"
    if verb.endswith("y"):
        return verb[:-1] + "ied"
    return verb + ("d" if verb.endswith("e") else "ed")


def did(rng, verb):
    """A verb concept in the past tense."""
    return past(pick(rng, verb))


def agree(verb, plural):
    """A verb in the present tense: chases, or chase with a plural subject."""
    return verb if plural else ending_s(verb)


def noun_phrase(rng, noun, trait=None, article="the", plural=False):
    """the old dog: concepts to words."""
    word = pick(rng, noun)
    adjective = f"{pick(rng, trait)} " if trait else ""
    return f"{article} {adjective}{ending_s(word) if plural else word}"


def near(rng):
    """near the bridge."""
    return f"near the {pick(rng, pick(rng, PLACES))}"


def told(rng, doer, verb, other):
    """doer verb other in one of four ways, the same meaning each; doer and other are phrases."""
    v = did(rng, verb)
    return pick(rng, (f"{doer} {v} {other}", f"{other} was {v} by {doer}",
                      f"it was {doer} that {v} {other}", f"it was {other} that {doer} {v}"))


def embedded(rng, doer, verb, other, aside, bystander):
    """told, with a relative clause or an adverbial that brings a bystander into the subject.

    Returns the sentence and the pair (doer, other) of the clause beside, None without one.
    """
    v, a = did(rng, verb), did(rng, aside)
    first, rest = pick(rng, ((doer, f"{v} {other}"), (other, f"was {v} by {doer}")))
    return pick(rng, ((f"{first} that {bystander} {a} {rest}", (bystander, first)),
                      (f"{first} that {a} {bystander} {rest}", (first, bystander)),
                      (f"{first} near {bystander} {rest}", None)))


def some_did(rng, who, others, verb):
    """who did it, and others did not, in one of four ways."""
    w, o, base = " and ".join(who), " and ".join(others), pick(rng, verb)
    return pick(rng, (f"{w} {past(base)} but {o} did not", f"{o} did not {base} but {w} did",
                      f"it was {w} and not {o} that {past(base)}",
                      f"it was not {o} but {w} that {past(base)}"))


def in_time(rng, first, then):
    """Two clauses, the first before the second, in one of six ways."""
    return pick(rng, (f"{first} before {then}", f"before {then} , {first}",
                      f"{then} after {first}", f"after {first} , {then}",
                      f"{first} and later {then}", f"{then} but earlier {first}"))


def because(rng, doer, verb, other, pronoun, state):
    """anna helped bruno because she was tired."""
    reason = f"because {pronoun} was {pick(rng, state)}"
    event = told(rng, doer, verb, other)
    return f"{event} {reason}" if chance(rng, 0.7) else f"{reason} , {event}"


def opinion(rng, work, positive, negation=0.5):
    """What is said of a work: its adjective and a negation, if there is one, make the judgement."""
    negated = chance(rng, negation)
    adjective = pick(rng, pick(rng, GOOD if positive != negated else BAD))
    thing = f"the {pick(rng, work)}"
    if chance(rng, 0.7):
        return f"{thing} was {'not ' if negated else pick(rng, ('', 'very '))}{adjective}"
    return f"{'nobody' if negated else 'everybody'} found {thing} {adjective}"


def contrast(rng, main, side):
    """Two clauses of which `main` has the last word, in one of three ways."""
    return pick(rng, (f"{side} but {main}", f"although {side} , {main}", f"{main} although {side}"))


def vocabulary():
    """Every word that the grammar can say, sorted."""
    concepts = [*PEOPLE, *ANIMALS, *MACHINES, *PLACES, *WORKS, *TRAITS, *STATES, *GOOD, *BAD]
    nouns = [w for c in (*PEOPLE, *ANIMALS, *MACHINES) for w in c]
    verbs = [w for c in (*TRANSITIVE, *INTRANSITIVE) for w in c]
    words = {w for c in concepts for w in c} | {*WOMEN, *MEN, *verbs, *KINDS, *FUNCTION_WORDS}
    return sorted(words | {ending_s(w) for w in (*nouns, *verbs)} | {past(v) for v in verbs})
