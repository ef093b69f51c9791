"""What questions ask for, and other ways to ask it; all sentences are our own."""

from __future__ import annotations

__all__ = ["LINKS", "RELATIONS", "TAIL"]

#: What a question says beside its subject (the first match counts) → other ways to ask.
RELATIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        r"named (after|for)|namesake",
        ("Who or what gave {} its name?", "{} owes its name to whom?"),
    ),
    (
        r"conservation|iucn|endangered",
        ("How threatened is {}?", "On the list of threatened species, what is {}?"),
    ),
    (
        r"\bsex\b|gender",
        ("Is {} a man or a woman?", "Which gender does {} have?"),
    ),
    (
        r"cause of death|caused .*death|killed|ailment|die of|died of|die from|of what did .*die",
        ("From what did {} die?", "What was it that {} died of?"),
    ),
    (
        r"(place|location|city|town|where).*(death|die)|(death|die).*(place|location|city|where)",
        ("In which place did {} die?", "Where did the life of {} end?"),
    ),
    (
        r"(date|when|year|day).*(death|die|pass)|(death|die).*(date|when|year)",
        ("When did {} die?", "On which date did the life of {} end?"),
    ),
    (
        r"disease|medical|suffer|illness",
        ("Which illness did {} have?", "From what did {} suffer?"),
    ),
    (
        r"(date|when|year|day).*(birth|born)|birth ?date|born on|birthday",
        ("When was {} born?", "On which date did {} come into the world?"),
    ),
    (
        r"(birth|born)|home ?town|city .*\bfrom\b",
        ("Where did {} come into the world?", "What is the birthplace of {}?"),
    ),
    (
        r"nationalit|citizen|national identity|which country .*\bfrom\b",
        ("To which nation does {} belong?", "{} is a citizen of which country?"),
    ),
    (
        r"native (language|tongue)|mother tongue|first language|speak|spoke",
        ("Which language did {} learn first?", "What is the mother tongue of {}?"),
    ),
    (
        r"programming language|written in .*code|language .*(program|software)",
        ("In which programming language was {} written?", "{} is coded in which language?"),
    ),
    (
        r"language",
        ("Which language is used in {}?", "In which language was {} made?"),
    ),
    (
        r"voice|vocal|tone|\brange\b",
        ("Which voice type does {} have?", "As a singer, {} belongs to which voice type?"),
    ),
    (
        r"instrument",
        ("Which instrument does {} play?", "What does {} play as a musician?"),
    ),
    (
        r"record|label",
        ("Which record label stands behind {}?", "On which label did {} appear?"),
    ),
    (
        r"universit|college|educat|stud(y|ied)|school|alma mater",
        ("Where did {} get an education?", "At which institution was {} a student?"),
    ),
    (
        r"parent company|subsidiary|owns|owned|owner",
        ("Which company owns {}?", "To which owner does {} belong?"),
    ),
    (
        r"position|office|title|rank",
        ("Which position did {} hold?", "What was the office of {}?"),
    ),
    (
        r"species|living being|organism|gene\b",
        ("In which species is {} found?", "Which living thing carries {}?"),
    ),
    (
        r"occupation|career|profession|\bjob\b|work as|for a living",
        ("What does {} do for a living?", "What is the profession of {}?"),
    ),
    (
        r"league",
        ("In which league does {} compete?", "To which league does {} belong?"),
    ),
    (
        r"\bteam\b|\bclub\b|plays? for|played for",
        ("For which team does {} play?", "To which team does {} belong?"),
    ),
    (
        r"\bsports?\b",
        ("Which sport does {} belong to?", "What sport is {} known from?"),
    ),
    (
        r"fiction|show|piece of|universe|series|character|appear|seen in|work of",
        ("In which work can {} be found?", "Where does {} occur as part of a story?"),
    ),
    (
        r"publish|publication",
        ("Which house published {}?", "{} was brought out by which publisher?"),
    ),
    (
        r"vessel|ship|submarine|craft|aquatic|boat",
        ("What kind of vessel is {}?", "Which class of ship describes {}?"),
    ),
    (
        r"chromosome",
        ("On which chromosome is {} found?", "Which chromosome carries {}?"),
    ),
    (
        r"\bgenus\b|taxon|family",
        ("Of which family is {} a member?", "{} is counted among which family?"),
    ),
    (
        r"stadium|arena|home field|home venue",
        ("In which stadium does {} play at home?", "Which venue is home to {}?"),
    ),
    (
        r"network|channel|broadcast",
        ("Which network showed {}?", "Where on television did {} run?"),
    ),
    (
        r"distribut",
        ("Which company brought {} to its audience?", "By whom was {} distributed?"),
    ),
    (
        r"licen[cs]e\b",
        ("Under which license is {} given out?", "What are the license terms of {} called?"),
    ),
    (
        r"illustrat|ilustrat",
        ("Who drew the pictures of {}?", "Whose illustrations are in {}?"),
    ),
    (
        r"constellation",
        ("In which constellation does {} stand?", "Which constellation holds {}?"),
    ),
    (
        r"celestial|astronomical|planet|moon",
        ("On which body in space does {} lie?", "Which world has {} on it?"),
    ),
    (
        r"body of water|river|flow|lake|sea\b|connect to|empties",
        ("Into which water does {} run?", "Which water does {} reach?"),
    ),
    (
        r"continent",
        ("Of which continent is {} a part?", "On which continent does {} lie?"),
    ),
    (
        r"airport|airline|\bhub\b",
        ("Which airport belongs to {}?", "At which airport is {} based?"),
    ),
    (
        r"mother|female parent",
        ("Who is the mother of {}?", "Which woman gave birth to {}?"),
    ),
    (
        r"father|male parent|\bdad\b",
        ("Who is the father of {}?", "Which man is {} a child of?"),
    ),
    (
        r"sister|brother|sibling",
        ("Who is a sibling of {}?", "With whom did {} grow up as brother or sister?"),
    ),
    (
        r"spouse|wife|husband|married|partner",
        ("To whom was {} married?", "Who is the spouse of {}?"),
    ),
    (
        r"child|\bson\b|daughter",
        ("Who is a child of {}?", "Name a son or daughter of {}."),
    ),
    (
        r"design|architect",
        ("Who drew up the design of {}?", "{} was designed by whom?"),
    ),
    (
        r"direct(ed|or)",
        ("Who was in charge of filming {}?", "Under whose direction was {} made?"),
    ),
    (
        r"\bstar\b|cast|actor|actress|starred",
        ("Who acts in {}?", "Which actor can be seen in {}?"),
    ),
    (
        r"compos|music",
        ("Who wrote the music of {}?", "The music of {} is by whom?"),
    ),
    (
        r"screenwriter|author|wrote|writer",
        ("Who is the author of {}?", "By whom was {} written?"),
    ),
    (
        r"develop",
        ("By whom was {} developed?", "Which developer made {}?"),
    ),
    (
        r"produc|manufactur|\bmakes?\b|\bmade\b|\bbuil[dt]",
        ("By whom was {} made?", "Which maker stands behind {}?"),
    ),
    (
        r"creat|invent|responsible for|artist|performer|singer",
        ("By whom was {} created?", "Whose work is {}?"),
    ),
    (
        r"discover|found by",
        ("Who found {} first?", "By whom was {} discovered?"),
    ),
    (
        r"\bwar\b|conflict|battle|fought",
        ("In which war did {} take part?", "Which conflict was {} involved in?"),
    ),
    (
        r"crime|convict|guilty",
        ("Of which crime was {} found guilty?", "For what was {} sentenced?"),
    ),
    (
        r"award|prize|medal|honou?r",
        ("Which award was given to {}?", "What did {} receive as an honor?"),
    ),
    (
        r"religio|faith|church",
        ("Which faith does {} follow?", "What is the religion of {}?"),
    ),
    (
        r"militar|army|branch|served in",
        ("In which force did {} serve?", "To which military branch does {} belong?"),
    ),
    (
        r"ethnic",
        ("From which people does {} come?", "To which ethnic group does {} belong?"),
    ),
    (
        r"material|made (out )?of|fabric",
        ("Of what does {} consist?", "Which material is {} made of?"),
    ),
    (
        r"industry|sector",
        ("In which industry does {} work?", "Which line of business is {} in?"),
    ),
    (
        r"architectur|\bstyle\b",
        ("In which style was {} built?", "Which style does {} show?"),
    ),
    (
        r"genre|type of (music|film|book)",
        ("Which genre does {} belong to?", "To what genre would you count {}?"),
    ),
    (
        r"\bend(ed|ing)?\b|dissol|abolish|disband|ceased|demolish|retire|final year|closed",
        ("When was it over for {}?", "In which year did {} come to its end?"),
    ),
    (
        r"start|incept|founded|found(ed|ation)|establish|begin|began|creat.* year|formed",
        ("When did {} begin?", "In which year did {} come into being?"),
    ),
    (
        r"approv|introduc|enter(ed)? service|first flight|debut|air(ed)?\b|releas",
        ("When did {} come out first?", "On which date was {} brought out?"),
    ),
    (
        r"\bcountry\b|\bnation\b",
        ("Of which country is {} a part?", "Which country does {} come from?"),
    ),
    (
        r"\bstate\b|province|region|district|county|territor",
        ("In which part of its country does {} lie?", "To which region does {} belong?"),
    ),
    (
        r"headquarter|based in",
        ("Where is {} based?", "In which place is the seat of {}?"),
    ),
    (
        r"\bcity\b|\btown\b|\bplace\b|\bwhere\b|locat|found",
        ("In which place is {}?", "Where can {} be found?"),
    ),
    (
        r"\bwhen\b|\byear\b|\bdate\b",
        ("At what time was {}?", "Which date goes with {}?"),
    ),
)

_LINK_WORDS = """
& a an and at by da das de del den der des di do dos du e el et for from het in la las le les los
of on or the to und van vom von with y zu
"""
_TAIL_WORDS = """
a abolished about affiliated after air aired airs album an and any apart appear appeared appears
approved architect are artist as associated at attend attended based be become before began begin
belong belongs birth birthdate birthplace born brother built by called came can career cast cause
caused ceased character child citizen citizenship city classified closed club come commissioned
committed company compete connect connects constellation convicted country crashed created creator
cross date daughter dead death designed developed did die died directed director discovered
dissolved do does edited educated employed employment end ended ends enter entered established
exist existed exists expire expired family father father's female fight first flow football for
form formed found founded from game gave gender gene get give go got had happen happened has have
he held her him his hold home husband if illustrated in incepted inception into introduced is it
its join joined killed known label language launch launched league lie liscensed live lived
located made make male manufactured married member mother mother's named nationality native near
nominated occupation occur occured occurred of off office officially on opened operate operated or
original originally originate out owned parent part participate performed place play played
playing plays position produce produced produces profession project project's prosecuted published
range record recorded related release released replaced represent reside resided s sang screened
seen serve served sex she sibling sing sings sister son speak specific spouse spouse's star start
started stem study take taken team that the their they through to took top tributary turn until up
use used using voice was went were when where which who whom whose wife will with won work worked
works write written wrote year
"""

#: Words in lower case that may stand inside a name.
LINKS = frozenset(_LINK_WORDS.split())
#: Words that go on with the question behind a name; any other word belongs to the name.
TAIL = frozenset(_TAIL_WORDS.split())
