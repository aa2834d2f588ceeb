"""Which pairs of questions may share an answer. The pairs are written by hand, none is of a benchmark."""

import pytest

from steps.semantic_cache.agreement import Verdict, agree
from steps.semantic_cache.canonical import canonical
from steps.semantic_cache.spelling import is_typo, is_word

SAME = """
How do I renew my library card? | how do i renew my library card
How do I renew my library card? | HOW DO I RENEW MY LIBRARY CARD?
How do I renew my library card? | How Do I Renew My Library Card?
How do I renew my library card? | Hi, how can I renew my library card please? Thanks!
How do I renew my library card? | um so how do i uh renew my library card
How do I renew my library card? | Could you tell me how to renew my library card?
How do I renew my library card? | Hello there! How do I   renew my library card??
What's the weather like in Oslo? | What is the weather like in Oslo
Why can't I log in? | Why can not I log in?
Where can I park near the theatre? | Where do I park near the theater?
Do you ship to the U.K.? | Do you ship to the UK?
Is there a lift in the building? | In the building, is there a lift?
After the exam, when do I get my results? | When do I get my results after the exam?
How much does a haircut cost? | What is the price of a haircut?
Can I keep 1,500 files? | Can I keep 1500 files?
Is 15 percent the usual tip? | Is 15% the usual tip?
Do I need two passport photos? | Do I need 2 passport photos?
When does the museum begin the tour? | When does the museum start the tour?
Where can I purchase stamps? | Where can I buy stamps?
How do I read my electricty meter? | How do I read my electricity meter?
How do I change my delivrey address? | How do I change my delivery address?
Who’s the mayor of Lyon? | Who's the mayor of Lyon?
Please remind me to water the plants | Remind me to water the plants
Was ist die Hauptstadt von Peru? | was ist die Hauptstadt von Peru
"""

DIFFERENT = """
Turn on the lights | Turn off the lights
Turn the heating up | Turn the heating down
Can I eat before the blood test? | Can I eat after the blood test?
Is it safe to fly with a cold? | Is it unsafe to fly with a cold?
Can I travel with a visa? | Can I travel without a visa?
How do I turn the alarm on? | How do I turn the alarm off?
Convert USD to EUR | Convert EUR to USD
Is Python better than Ruby? | Is Ruby better than Python?
Trains from Rome to Milan | Trains from Milan to Rome
Did the dog bite the man? | Did the man bite the dog?
Who sold the house to Anna? | Who did Anna sell the house to?
Take 5 mg daily? | Take 5 g daily?
Is 20 °C warm enough? | Is 20 °F warm enough?
Is the limit 10 Mb? | Is the limit 10 MB?
How much is $5 in yen? | How much is €5 in yen?
What is 7 + 5? | What is 7 - 5?
What is 7 * 5? | What is 7 / 5?
What is -5 plus 3? | What is 5 plus 3?
What is 1.5 times 4? | What is 15 times 4?
What happened on 3 May 1945? | What happened on 5 March 1945?
What changed in version 3.1? | What changed in version 3.11?
Meet at 7am? | Meet at 7pm?
Is room 12 free? | Is room 21 free?
What is a mole in chemistry? | What is a mole in biology?
Tell us about it | Tell US about it
tell us about the law | tell US about the law
Can you polish my desk? | Can you Polish my desk?
What is matter? | What is the matter?
What is time? | What is the time?
Few people came, why? | A few people came, why?
No refunds are given? | No, refunds are given?
Cancel my order. | Cancel my order?
How do I look? | How can I look?
How do you make money? | How do I make money?
Can I cancel my booking? | Can he cancel my booking?
Should I see a doctor? | Must I see a doctor?
Was I charged? | Will I be charged?
Can I open an account? | Can I open accounts?
Book a room for Friday | Book the rooms for Friday
Is my son covered? | Is my daughter covered?
Is payment due in the first week? | Is payment due in the last week?
Does it hurt all patients? | Does it hurt some patients?
I never got the parcel | I got the parcel
Can I hardly be heard? | Can I be heard?
Everyone but Tom may vote, right? | Everyone and Tom may vote, right?
Is the shop open unless it rains? | Is the shop open if it rains?
Who is my employer? | Who is my employee?
Is the payer notified? | Is the payee notified?
What is arthritis? | What is arteritis?
How is propane stored? | How is propene stored?
What does Dr Jonson treat? | What does Dr Johnson treat?
Where is my desert? | Where is my dessert?
What is the plot of "Emma"? | What is the plot of "Persuasion"?
How do you spell colour? | How do you spell color?
How do you say please in French? | How do you say thanks in French?
Translate to German: hello | Translate to German: thanks
Translate to German: thank you | Translate to German: cheers
How many r's are in strawberry? | How many r's are in strawbery?
Fix the typo in: teh cat | Fix the typo in: the cat
What does `a < b` give? | What does `a > b` give?
Is x==1 or x=1 right? | Is x=1 or x==1 right?
Explain a->b | Explain a<-b
List files in /tmp/a | List files in /tmp/b
Какая столица Перу? | Какая столица Чили?
秘鲁的首都是哪里? | 智利的首都是哪里?
Kann ich heute kommen? | Kann ich heute nicht kommen?
Puis-je venir ? | Puis-je ne pas venir ?
Hi-fi systems under 500 | Fi systems under 500
who regulates drugs, who or fda | who regulates drugs, WHO or FDA
What is the left lane for? | What is the right lane for?
Are import taxes due? | Are export taxes due?
Is the deadline for applying May? | Is the deadline for applying June?
What is hypertension? | What is hypotension?
Is it illegal to park here? | Is it legal to park here?
Does the trial include support? | Does the trial exclude support?
How do I lock the door from inside? | How do I unlock the door from inside?
Do I need an adult ticket? | Do I need a child ticket?
Can I pay by card or cash? | Can I pay by card and cash?
Let us eat, grandma | Let us eat grandma
What is a man-eating shark? | What is a man eating shark?
How many thirty-one day passes are left? | How many thirty one-day passes are left?
How much is a pint? | What is the price of a pint?
Do you know how to swim? | How do I swim?
Do you have a soul? | Is there a soul?
Who do I trust? | Who can I trust?
How do I die in this game? | How can I die in this game?
how do i apply to um | how do i apply to uh
What does um mean? | What does uh mean?
When does Grey's Anatomy start? | When does Gray's Anatomy start?
What does Labour want? | What does labor want?
Where is the Harbour Centre? | Where is the Harbour center?
Where is the mummy buried? | Where is the mum buried?
How do I get rid of stains? | How do I get rid of statins?
What happens to interstate property? | What happens to intestate property?
Is caning legal in schools? | Is canning legal in schools?
What does custom require of us here? | What does customs require of us here?
Where can I claim damage to my car? | Where can I claim damages to my car?
Did a few of the guests come on time? | Did few of the guests come on time?
Is a number of people here right? | Is the number of people here right?
Do you take me for a fool? | Do you take me for full?
Can two people share one pass? | Can one people share two pass?
Is it 3-5 days? | Is it 35 days?
What is 2024-01-02 in words? | What is 2024-02-01 in words?
"""


def pairs(text: str) -> list[tuple[str, str]]:
    return [(a.strip(), b.strip()) for a, b in (x.split(" | ") for x in text.strip().splitlines())]


@pytest.mark.parametrize(("a", "b"), pairs(SAME))
def test_harmless_differences_ask_the_same(a: str, b: str) -> None:
    assert agree(canonical(a), canonical(b), is_word).verdict is Verdict.SAME
    assert agree(canonical(b), canonical(a), is_word).verdict is Verdict.SAME


@pytest.mark.parametrize(("a", "b"), pairs(DIFFERENT))
def test_what_changes_the_answer_is_never_the_same(a: str, b: str) -> None:
    for one, other in ((a, b), (b, a)):
        verdict = agree(canonical(one), canonical(other), is_word).verdict
        assert verdict not in (Verdict.SAME, Verdict.NEAR)


NEAR = """
How do I pay the fine for a late book? | How do I pay fine for the late book?
Is it safe to buy a laptop from them online? | Is it safe to buy laptop from them online?
"""


@pytest.mark.parametrize(("a", "b"), pairs(NEAR))
def test_an_article_may_differ_if_the_vectors_are_very_near(a: str, b: str) -> None:
    assert agree(canonical(a), canonical(b), is_word).verdict is Verdict.NEAR


GUARDED = """
Send me ten reports by Monday please | I want 11 reports by Monday
Do you open on Friday afternoon? | Are you there on Saturday afternoon?
How can I switch the alarm on? | What is the way to get the alarm off?
Which foods are safe in pregnancy? | What must not be eaten in pregnancy?
Is Lisbon sunny? | Does Madrid get much sun?
"""


@pytest.mark.parametrize(("a", "b"), pairs(GUARDED))
def test_a_verifier_is_not_asked_where_a_number_a_name_or_a_negation_differs(
    a: str, b: str
) -> None:
    assert agree(canonical(a), canonical(b), is_word).verdict is Verdict.DIFFERENT


def test_a_paraphrase_in_other_words_is_open_to_a_verifier() -> None:
    a, b = canonical("How do I cancel my subscription?"), canonical("I want to end my subscription")
    assert agree(a, b, is_word).verdict is Verdict.OPEN


@pytest.mark.parametrize(
    ("a", "b"),
    [("adverse", "averse"), ("trail", "trial"), ("casual", "causal"), ("payer", "payee"),
     ("prescribe", "proscribe"), ("typical", "atypical"), ("xanax", "xanaax")],
)  # fmt: skip
def test_two_words_and_two_names_are_no_mistyping(a: str, b: str) -> None:
    assert not is_typo(a, b, is_word)


@pytest.mark.parametrize(
    "text", ["", "   ", "?!", "hi", "thanks!", "a" * 5000, "\u200b", "🙂", "-"]
)
def test_a_text_without_words_is_canonical_too(text: str) -> None:
    form = canonical(text)
    assert agree(form, canonical("How do I pay?"), is_word).verdict is not Verdict.SAME
