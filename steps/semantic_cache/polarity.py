"""What two questions in other words must still share: numbers, units, dates, negations, directions, names. Pure.

Called by `agreement` before a verifier model is asked: a model misses a changed digit or a «not», code does not.
"""

import re
from collections import Counter
from typing import Final

from steps.semantic_cache.canonical import Canonical
from steps.semantic_cache.words import NEGATIONS, word_set

_DATES: Final = word_set("""
    monday tuesday wednesday thursday friday saturday sunday mondays tuesdays wednesdays thursdays fridays saturdays
    sundays weekday weekdays weekend weekends january february march april june july august september october november
    december today tomorrow yesterday tonight morning afternoon evening midnight noon spring summer autumn winter
    am pm daily weekly monthly yearly annual annually quarterly hourly century decade
    """)
_UNITS: Final = word_set("""
    % £ $ € ¥ usd gbp eur pounds pound dollars dollar euros euro cents pence kg g mg mcg µg lb lbs oz km m cm mm mi
    mile miles inch inches ft feet yard yards litre litres liter liters ml gallon gallons kb mb gb tb hours hour minutes
    minute seconds second days day weeks week months month years year celsius fahrenheit kelvin
    """)
_NEGATIVE: Final = (NEGATIONS - {"yes", "only"}) | word_set(
    """
    cannot avoid exclude excluded excludes refuse deny denied decline ban banned forbid forbidden prohibited illegal
    unlawful unable lack
    """
)
_NEGATIVE_PREFIX: Final = re.compile(
    r"un(?!der|iver|it|ion|ique|iform|til|cle)[a-z]{4}|dis(?!c|h|t|play)[a-z]{4}|non[a-z]{4}"
)
_OPPOSITES: Final = tuple(
    tuple(frozenset(side.split(",")) for side in pair.split(":"))
    for pair in """
    on,enable,enabled,activate,activated,activating,enabling:off,disable,disabled,deactivate,deactivated,disabling
    up,increase,increased,raise,higher,rise,grow,increasing:down,decrease,decreased,lower,reduce,fall,shrink,reducing
    in,into,inside,within,enter,join,joining:out,outside,leave,leaving,exit
    before,until,earlier,prior,pre:after,since,later,following,post
    over,above,more,most,maximum,max,exceed,longer,larger,bigger:under,below,less,least,minimum,min,fewer,shorter,smaller
    first,earliest,oldest,start,begin,opening,open,opens:last,latest,newest,end,finish,closing,close,closes,closed
    best,advantage,advantages,benefit,benefits,pros,good:worst,disadvantage,disadvantages,drawback,drawbacks,cons,bad
    left,west,western:right,east,eastern
    north,northern:south,southern
    buy,buying,purchase,bought:sell,selling,sold
    send,sending,sent,lend,give,export,upload,push:receive,receiving,received,borrow,take,import,download,pull
    add,adding,include,included,includes,insert,install,create:remove,removing,delete,deleted,exclude,uninstall
    accept,accepting,approve,approved,allow,allowed,legal:reject,rejected,decline,refuse,deny,denied,ban,banned,illegal
    safe,healthy,secure:unsafe,dangerous,harmful,unhealthy,insecure
    hot,warm,hotter:cold,cool,colder
    fast,faster,quick,quickly,fastest:slow,slower,slowly,slowest
    cheap,cheaper,cheapest:expensive,dearer,dearest
    same,similar,alike:different,differ,opposite
    always,ever:never
    all,every,everyone,both:none,some
    win,won,winner,pass,passed,succeed,success:lose,lost,loser,fail,failed,failure
    male,man,men,boy,boys,husband,father:female,woman,women,girl,girls,wife,mother
    child,children,kid,kids,baby,toddler:adult,adults
    employer,landlord,seller,lender,teacher,parent:employee,tenant,buyer,borrower,student,child
    domestic,local,home:international,foreign,abroad
    full,fully:part,partial,partially,empty
    online,digital:offline,paper
    arrive,arrival,arrivals,arriving:depart,departure,departures,departing
    input,question:output,answer
    love,like,likes:hate,dislike,dislikes
    possible,can:impossible
    public:private
    true:false
    with:without
    """.strip().splitlines()
)


def difference(a: Canonical, b: Canonical) -> str:
    """What differs, in one word; empty if nothing of this kind does."""
    mine, other = frozenset(a.texts), frozenset(b.texts)
    if _numbers(a) != _numbers(b):
        return "numbers"
    if mine & _DATES != other & _DATES:
        return "dates"
    if mine & _UNITS != other & _UNITS:
        return "units"
    if _negations(a) != _negations(b):
        return "negation"
    if _opposed(mine - other, other - mine):
        return "opposite"
    if _names(a) != _names(b) and a.casing.tells_names and b.casing.tells_names:
        return "names"
    lone = _names(a) - other if a.casing.tells_names else frozenset()
    lone |= _names(b) - mine if b.casing.tells_names else frozenset()
    return "names" if lone else ""


def _numbers(of: Canonical) -> Counter[str]:
    return Counter(text for text in of.texts if any(c.isdigit() for c in text))


def _negations(of: Canonical) -> int:
    return sum(text in _NEGATIVE or bool(_NEGATIVE_PREFIX.match(text)) for text in of.texts)


def _opposed(mine: frozenset[str], other: frozenset[str]) -> bool:
    return any(
        (mine & one and other & two) or (mine & two and other & one) for one, two in _OPPOSITES
    )


def _names(of: Canonical) -> frozenset[str]:
    return frozenset(
        token.text
        for token in of.tokens
        if token.raw[:1].isupper() and not token.is_first and token.raw != "I"
    )
