"""The differences between two questions that are harmless, as closed lists of English words.

Called by `canonical`. What is on no list must be equal: a pair of questions that these lists do not foresee is a miss,
never a wrong answer. Only add what keeps the answer the same in every sentence; `bench/semantic_cache.py` shows what
an addition serves and what it breaks.
"""

from typing import Final

Phrase = tuple[str, ...]
Table = dict[Phrase, Phrase]


def _table(text: str) -> Table:
    """Lines `a | b = c`: each phrase on the left reads as the one on the right."""
    found: Table = {}
    for line in text.strip().splitlines():
        left, right = line.split("=")
        for phrase in left.split("|"):
            found[tuple(phrase.split())] = tuple(right.split())
    return found


def word_set(text: str) -> frozenset[str]:
    """The words of a text, as it is written in these lists."""
    return frozenset(text.split())


def _numbers(text: str, first: int, factor: int) -> dict[str, str]:
    return {word: str(n * factor) for n, word in enumerate(text.split(), first)}


HESITATIONS: Final = word_set("um umm uh uhm uhh erm hmm")
"""Dropped at the start and after a pronoun, in small letters: «apply to um» and «apply to UH» name universities."""
BEFORE_HESITATION: Final = word_set("i we you so and")

OPENINGS: Final = _table(
    """
    hi | hello | hey | hiya | hi there | hello there | hey there | good morning | good afternoon | good evening =
    so | ok so | okay so | hi team | hello team | dear team | hi all | quick question =
    """
)
"""Dropped at the start."""

GREETINGS_WITH_MARK: Final = _table("morning | afternoon | evening | ok | okay | well =")
"""Dropped at the start where a mark follows: «Morning! How ...»."""

CLOSINGS: Final = _table(
    """
    please | pls | plz =
    """
)
"""Dropped at the end."""

CLOSINGS_WITH_MARK: Final = _table(
    """
    thanks | thank you | thanks a lot | many thanks | thank you very much | thank you so much | cheers | ta | thx =
    thanks in advance | thank you in advance | thanks very much | thanks so much =
    """
)
"""Dropped at the end where a mark stands before: «... menu? Thank you»."""

CONTRACTIONS: Final = _table(
    """
    can't | cant | cannot = can not
    won't | wont = will not
    shan't = shall not
    don't | dont = do not
    doesn't | doesnt = does not
    didn't | didnt = did not
    isn't | isnt = is not
    aren't | arent = are not
    wasn't | wasnt = was not
    weren't | werent = were not
    hasn't | hasnt = has not
    haven't | havent = have not
    hadn't | hadnt = had not
    wouldn't | wouldnt = would not
    couldn't | couldnt = could not
    shouldn't | shouldnt = should not
    mustn't = must not
    needn't = need not
    what's | whats = what is
    who's = who is
    where's | wheres = where is
    when's = when is
    how's = how is
    why's = why is
    that's | thats = that is
    it's = it is
    there's | theres = there is
    here's = here is
    i'm | im = i am
    you're | youre = you are
    we're = we are
    they're | theyre = they are
    i've | ive = i have
    you've | youve = you have
    we've = we have
    they've = they have
    i'll = i will
    you'll = you will
    it'll = it will
    we'll = we will
    they'll = they will
    """
)

SPELLINGS: Final = _table(
    """
    an = a
    percent | per cent = %
    e - mail = email
    wi - fi = wifi
    on - line = online
    till | til = until
    whilst = while
    amongst = among
    towards = toward
    okay = ok
    versus | vs = vs
    and = &
    everybody = everyone
    somebody = someone
    anybody = anyone
    maximum = max
    telephone = phone
    television | telly = tv
    refrigerator = fridge
    information = info
    cheque | cheques = check
    mum = mom
    programme = program
    programmes = programs
    tyre = tire
    tyres = tires
    aluminium = aluminum
    jewellery = jewelry
    licence = license
    licences = licenses
    pyjamas = pajamas
    plough = plow
    kerb = curb
    centre = center
    centres = centers
    theatre = theater
    theatres = theaters
    metre = meter
    metres = meters
    litre = liter
    litres = liters
    fibre = fiber
    favourite = favorite
    colour = color
    colours = colors
    neighbour = neighbor
    neighbours = neighbors
    behaviour = behavior
    honour = honor
    flavour = flavor
    flavours = flavors
    cancelled = canceled
    cancelling = canceling
    travelling = traveling
    travelled = traveled
    traveller = traveler
    travellers = travelers
    enrolment = enrollment
    instalment = installment
    instalments = installments
    catalogue = catalog
    organise = organize
    recognise = recognize
    realise = realize
    apologise = apologize
    authorise = authorize
    customise = customize
    minimise = minimize
    maximise = maximize
    optimise = optimize
    prioritise = prioritize
    summarise = summarize
    analyse = analyze
    """
)
"""Two spellings of one word."""

NAMES: Final = _table(
    """
    united kingdom = uk
    united states of america = usa
    """
)
"""Two names of one thing."""

SYNONYMS: Final = _table(
    """
    obtain = get
    purchase = buy
    commence | begin = start
    commences | begins = starts
    quickest = fastest
    assist = help
    require = need
    requires = needs
    log into | sign into | sign in to | login to = log in to
    sign in | login = log in
    sign out | logout | log off = log out
    get hold of | get in touch with = contact
    """
)
"""Words that exchange for each other wherever a question uses them."""

QUESTION_OPENINGS: Final = _table(
    """
    can you tell me | could you tell me | can you please tell me | could you please tell me =
    please could you tell me | please can you tell me | would you please tell me | please tell me | tell me =
    i want to know | i would like to know | i need to know | i'd like to know =
    i was wondering | i am wondering | just wondering =
    """
)
"""Dropped before a question word: «can you tell me how ...»."""

FRAMES: Final = _table(
    """
    how can i | how could i | how would i | how do i go about | how to | how might i = how do i
    how can we | how could we | how would we | how might we = how do we
    where can i | where could i | where would i = where do i
    who can i | who should i = who do i
    what is the way to = how do i
    what should i do if | what can i do if | what do i need to do if = what do i do if
    what should i do when | what can i do when = what do i do when
    is it possible for me to | would it be possible for me to | am i able to = can i
    is it ok if i | am i ok to = is it ok for me to
    how much do you charge for = what do you charge for
    how much do you charge to = what do you charge to
    how much does it cost to | how much is it to | how much would it cost to = what does it cost to
    what is the cost to = what does it cost to
    have you got = do you have
    """
)
"""Ways to open the same question; matched at the start only."""

KEEPS_HOW: Final = word_set(
    """
    look feel seem sound appear smell taste rank score compare do fare come differ stand belong live work sleep die
    trust know love like hate want need think believe
    """
)
"""Verbs that tell a state: «how do I look» is not «how can I look»."""

QUESTION_WORDS: Final = word_set("what which who whom whose when where why how")
AUXILIARIES: Final = word_set(
    "is are am was were do does did can could will would shall should may might must has have had"
)
QUESTION_STARTS: Final = QUESTION_WORDS | AUXILIARIES
FRONTED: Final = word_set(
    "in on at to for from with without by during after before if when while under over through into since until as"
)
"""Words that open a part of the sentence which may stand before or after the question."""

STRICT_WORDS: Final = word_set(
    """
    translate translation say says said saying spell spells spelled spelt spelling pronounce pronounced pronunciation
    rhyme rhymes define definition word words phrase phrases letter letters sentence sentences synonym synonyms antonym
    antonyms verb noun adjective abbreviation acronym grammar grammatical grammatically capitalise capitalize
    capitalised capitalized lowercase uppercase punctuation proofread rewrite rephrase paraphrase reword repeat echo
    quote quoted character characters syllable syllables typo typos misspelled misspelt string regex sql json xml html
    css javascript python java anagram palindrome encode decode
    """
)
"""A request with one of these may be about its own words: it must be equal byte for byte."""

NEGATIONS: Final = word_set(
    """
    no not never none nothing nobody nowhere neither nor without unless except excluding hardly scarcely barely rarely
    seldom only stop yes non
    """
)

CASE_HOMOGRAPHS: Final = word_set(
    """
    us it who may march august polish turkey china nice reading bath mobile job pole aids mark will bill rose grace
    hope faith art cat ram mint lent ms mrs
    """
)
"""Words that are others with a capital: «tell us» and «tell US»."""

NUMBERS: Final = {
    **_numbers("zero one two three four five six seven eight nine ten eleven twelve", 0, 1),
    **_numbers("thirteen fourteen fifteen sixteen seventeen eighteen nineteen", 13, 1),
    **_numbers("twenty thirty forty fifty sixty seventy eighty ninety", 2, 10),
}
