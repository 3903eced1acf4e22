"""Words and short pieces of what telephone systems say, the slots of prompt_templates.py."""

# a + marks an irregular past; its forms are among the others
VERBS = """accept access activate add adjust allow announce answer apply approve archive ask assign attach attempt
attend authorize balance block book browse bypass call cancel change charge check choose+ clear click close collect
compare complete confirm connect contact continue copy correct count create decline decrease delay delete deliver
deny depart deposit detect dial direct disable disconnect divert download edit email enable end enter erase escalate
expect expire explain extend fail file finish fix flash forward gather greet grant guide handle hang+ identify
ignore import include increase inform initialize insert install introduce invite join jump label launch list listen
load locate lock mark match mention merge monitor move mute name note notify offer open operate order page park
pause pay+ phone pick place play post prepare press print process program prompt protect provide purchase query
queue quit+ raise reach reboot receive reconnect record recover redial redirect reduce refill refuse register reject
release reload remain remind remove rename renew repeat replace reply report request require reschedule reserve
reset+ resolve respond restart restore resume retrieve retry return review ring+ route save scan schedule screen
search secure select send+ share shift sign skip sort speak+ specify spell start stay stop store submit subscribe
support suspend switch talk terminate test text toggle touch track transfer translate transmit turn undelete unlock
unmute unpark unsubscribe update upgrade upload use validate verify visit wait warn whisper withdraw+ work wrap"""
DOUBLED = {'stop', 'drop', 'plan', 'transfer', 'submit', 'transmit', 'wrap', 'scan', 'skip', 'program', 'cancel',
           'reset', 'quit'}  # fmt: skip
NOUNS = """account action address administrator agent alarm alert amount announcement answer appointment area
arrival assistant attempt attendant balance bank battery beep bill board box branch bridge broadcast browser
bulletin button cable call caller camera campaign card carrier category center change channel character charge
choice circuit claim clerk client clinic clock code command company computer conference configuration connection
console contact context contract copy country credit customer database date day default delay delivery department
deposit desk destination detail device digit direction directory discount disk document dollar domain door driver
duration echo email emergency employee engine entry error event exception exchange extension failure fax feature fee
file filter flight floor folder form format frame function gateway group greeting guest handset header headset
history holiday home host hotel hour household house identifier image instruction interface intercom interval
introduction invoice issue item job key keypad keyboard label language latency leader lease length letter level
library license limit line link list listener location lock log login machine mailbox manager market master meeting
member memo memory menu message meter method microphone minute mobile mode modem moderator module moment monitor
month morning mystery name network night note notice notification number object office operation operator option
order organization outage outlet owner package packet page pager paging parameter participant party passcode
password patient pattern pause payment period permission person phone pickup pin pipe place plan player point policy
port position prefix prescription priority privacy problem procedure process processor product profile program
project prompt protocol provider provision queue question quantity rate reason receipt receiver receptionist
recipient record recording region registration release reminder report representative request reservation resource
response restaurant result ring ringtone role room route router sale satellite schedule screen script season seat
second secretary section selection sender sensor sequence server service session setting shift shipment shop signal
site sound source speaker specialist speed stage standard statement station status step storage store stream street
string student subject subscriber subscription summary supervisor supplier survey switch system table tariff task
team technician telephone temperature terminal text ticket time timeout title tone topic trace track transaction
transfer traveler trunk type unit update upgrade user value vehicle vendor version visitor voice voicemail volume
warning website week weekend window wire word year zone"""
OTHERS = """about above absent active afternoon again all almost alone already also always and another any anonymous
anytime automatic available away back bad before below better between blank blind both busy but by now closed cold
complete correct current currently daily dead different digital direct down due during each early either empty
evening every everyone else everything exactly excellent external fair false far fast final fine first floor for
free frequently from full general good goodbye great greetings half happy heavy hello here hidden high hourly idle
if in inbound incoming incomplete incorrect inside insufficient internal international internally into invalid it
its last late later least left less live local long loud low main manual many me midnight missed missing more most
mostly multiple my never next no nobody none noon normal not of off offline often okay on once one moment online
only optional or other our out outbound outgoing outside over overdue partly personal please possible premium
present previous primary private public quickly quiet quietly rather ready really recent remote repeatedly required
restricted right same secondary secret several shared short silent silence simply since slow slowly so some
something somewhere sometimes soon sorry standby still strong sure tail technical temporarily temporary than thanks
that the their them then there these they this those through to together tonight too toward true twice unable
unanswered unassigned unavailable under unidentified unknown unlimited unlisted unreachable unread until up upon us
usually vacant vacation valid very via virtual wait warm we weak weekly welcome well what when where which who why
wireless with within without wrong yearly yes yet you your asap ethernet firewall firmware megabyte gigabyte
kilobyte javascript linux unix bluetooth broadband wifi codec dialer softphone voip sip skype android windows mac
laptop desktop thank bye i'm we're you're it's don't can't won't isn't hasn't couldn't we'll you'll that's begin
began begun beginning chose chosen found forgotten gone got heard held hung know known meant paid said seen sent set
shut spoke spoken taken told took understood went written audio hardware software information internet news music
traffic weather staff help input noise presence forwarding security quality power"""
LETTERS = list('abcdefghijklmnopqrstuvwxyz')
NATO = 'alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike november oscar papa quebec romeo \
sierra tango uniform victor whiskey xray yankee zulu'.split()
DAYS = 'monday tuesday wednesday thursday friday saturday sunday'.split()
MONTHS = dict(january=31, february=28, march=31, april=30, may=31, june=30, july=31, august=31, september=30,
              october=31, november=30, december=31)  # fmt: skip
SIGNS = 'comma|period|dot|dash|hyphen|underscore|slash|backslash|colon|semicolon|apostrophe|quote|question mark|\
exclamation point|exclamation mark|asterisk|star|pound|hash|pound sign|number sign|at|at sign|ampersand|plus|minus|\
equals|percent|percent sign|dollar sign|left parenthesis|right parenthesis|open bracket|close bracket|left brace|\
right brace|less than|greater than|tilde|caret|pipe|vertical bar|space|back quote|full stop|double quote|single quote|\
plus sign|euro sign|pound key|star key|hash key|left arrow|right arrow|capital letter|lower case|upper case|new line'

# {name} is one of a list or a method of prompts.Writer, here or there with an argument; (a/b/) is one of these
LISTS = {
    'first': """james|mary|robert|linda|michael|susan|david|karen|thomas|nancy|daniel|lisa|mark|sandra|paul|emily|
        steven|carol|kevin|amanda|brian|laura|george|helen|edward|anna|ronald|maria|peter|julia|frank|alice|henry|
        diane|carl""",
    'last': """smith|johnson|williams|brown|jones|miller|davis|wilson|anderson|taylor|moore|martin|lee|white|harris|
        clark|lewis|walker|hall|young|allen|king|wright|hill|green|baker|adams|nelson|carter|mitchell|parker|evans""",
    'person': '(mister/miss/doctor) {last}|{first} {last}|{first}|{first} {last}',
    'street': 'main|oak|park|maple|lake|hill|washington|church|river|cedar|elm|pine|bridge|market|mill|center|garden',
    'city': """new york|boston|chicago|denver|seattle|houston|dallas|atlanta|miami|phoenix|toronto|london|paris|
        berlin|madrid|sydney|portland|detroit|memphis|austin|cleveland|montreal|vancouver|dublin|rome|tokyo|orlando""",
    'company': """{last} and sons|{city} (medical center/savings bank/public library/dental care/airport parking)|
        {last} (insurance/electric/travel/hardware/and {last}/logistics)|northern airlines|the grand {city} hotel""",
    'department': """sales|billing|technical support|customer service|accounting|the front desk|human resources|
        reservations|shipping|the operator|marketing|payroll|the help desk|security|maintenance|the warehouse|
        purchasing|the pharmacy|the service department|new accounts|claims|the switchboard|the night desk""",
    'agent': """a representative|an agent|an operator|a specialist|the next available agent|our staff|a person|a
        member of our team|an advisor|customer service|the receptionist|someone who can help you""",
    'agentsbusy': 'all (of our/) (agents/representatives/operators/lines/specialists/advisors) are',
    'key': 'pound|star|pound|star|hash|zero|{digit}|{digit}|{digit}|{digit}',
    'mark': 'the (pound/hash/pound/star) (key/sign/key)',
    'folder': '(new/old/work/family/friends/saved/deleted/urgent/personal/archived/sent)',
    'thing': """message|voice message|call|fax|caller|recording|number|extension|mailbox|menu|greeting|password|
        account|order|appointment|conference|channel|queue|agent|directory|option|entry|setting|user|group|line|
        caller id|code|language|list|report|room|seat|ticket|reminder|wake up call|announcement|callback|phone|
        transfer|request""",
    'greeting': """(busy/unavailable/temporary/personal/standard/name/holiday/after hours/welcome) greeting|recorded
        name|(busy/unavailable) message|hold music|outgoing message""",
    'code': """password|pin|access code|account number|agent number|pass code|security code|customer number|user id|
        personal identification number|conference number|mailbox number|zip code|order number|date of birth|card
        number|extension number|phone number|membership number|policy number|invoice number|confirmation code""",
    'feature': """call (waiting/forwarding/recording/screening/return/transfer/pickup/parking)|do not disturb|follow
        me|find me|speed dial|caller id|anonymous call rejection|auto answer|night mode|three way calling|paging|
        voicemail|call forward (on busy/on no answer/always)|last number redial|line lock|music on hold|hot line""",
    'do': """(listen to/hear/play/skip) the (next/previous/first/last/same) message|(hear/replay) (this/the)
        (menu/message/greeting/recording) again|(save/delete/erase/keep/forward/archive/replay/undelete)
        (this/the/your) (message/recording/fax)|(leave/record) (a/another/a new) (message/greeting/name)|
        (change/update/reset/set) your {code}|(change/record/delete/listen to/review) your {greeting}|(turn on/turn
        off/activate/cancel/change) {feature}|(join/leave/lock/unlock/extend/end/record) the
        (conference/meeting/call)|(mute/unmute) (yourself/your line/all callers/the last caller)|(speak/talk)
        (to/with) {agent}|(return/go back) to the (main/previous/first) menu|(increase/decrease/raise/lower/reset)
        (the/your) (speaking/listening/) volume|mark this message as (urgent/private/new)|
        (hear/change/confirm/cancel) your (appointment/reservation/order/flight/delivery)|leave a callback number|
        (accept/reject/screen/forward/transfer/record/park/pick up) (this/the/the next) call|(send/write) a reply|
        (send this call/transfer the caller) to (voicemail/{department})|(pay your/hear the/dispute your)
        (bill/balance)|(enter/dial/choose/add/remove) (a different/another/a new)
        (number/extension/date/option/user/entry)|{agentdo}|(hear/repeat) the (time/date/number/list/options)
        (again/)|(place/make) (a/an outside/another/an emergency) call|(rewind/fast forward/pause) (the message/by
        {count second})|(report/hear about) (an outage/a lost card/a problem)|(skip/stop/continue/restart) (the
        recording/the announcement/this survey)|look up (a name/an extension)""",
    'agentdo': '(log in to/log out of/pause in/join/leave) (the queue/all queues/the {department} queue)',
    'press': '(please/) press {key}|press {mark}|(say/press or say) {digit}|dial {key}|press {key} (now/again)',
    'sound': '(the tone/the beep/the sound of the tone/the signal)',
    'status': """busy|unavailable|on the phone|not available|offline|logged in|logged out|paused|locked|full|empty|
        muted|active|closed|open|in use|out of office|enabled|disabled|not registered|ringing|on hold|ready|invalid|
        in a meeting|not responding|being recorded|now available|away from (his/her/the) desk|off hook|set to
        {number 20}""",
    'done': """
        (added/removed/saved/deleted/changed/sent/cancelled/accepted/recorded/forwarded/updated/confirmed/received/
        activated/deactivated/restored/transferred/disconnected/completed/paused/extended/scheduled/marked as
        urgent)""",
    'subject': """your {thing}|the {thing}|the {thing}|this {thing}|your {greeting}|{feature}|the (caller/person) at
        extension {digits 3}|your {code}|that {thing}|the (system/server/line/mail box of {person}/{department}
        queue)""",
    'weather': 'sunny|cloudy|partly cloudy|light rain|heavy rain|snow|thunderstorms|clear skies|fog|windy|drizzle',
    'why': """(due to/because of) (heavy traffic/technical difficulties/unusually high call volume/the
        holiday/maintenance /bad weather/a power failure)""",
    'period': 'this morning|today|tonight|this afternoon|tomorrow|over the weekend|{day}|at this time|until {day}',
    'soon': '(in a moment/shortly/as soon as possible/within {duration}/right away/in the order received)',
    'polite': """thank you|please hold|one moment|please wait|i'm sorry|sorry|we are sorry|welcome|hello|good
        (morning/afternoon/evening)|thanks for calling|attention|please note|remember""",
    'end': """goodbye|thank you (goodbye/for calling/for your patience/)|please (try again/call again/hang up/hold
        the line/try again later)|have a (nice/good/great) day|or (simply/just/) (stay on the line/hang up)|to
        repeat press {key}""",
    'bank': """account balances|recent transactions|a lost or stolen card|credit cards|loans|mortgages|wire
        transfers|checking|savings|to activate a card|branch locations|online banking|to order checks|interest rates""",
    'airline': """flight status|new reservations|existing bookings|lost baggage|frequent flyer miles|group travel|
        refunds|seat selection|arrivals|departures|special assistance|cargo|domestic flights|international travel""",
    'clinic': """appointments|prescription refills|test results|the nurse|billing|the pharmacy|the emergency room|
        patient information|directions|medical records|the dental clinic|radiology|physical therapy|visiting hours""",
    'shop': """store hours|the status of an order|returns and exchanges|gift cards|to place an order|the toy
        department|delivery|repairs|the garden center|our weekly specials|hardware|electronics|furniture|shoes|
        product information""",
    'hotel': """room reservations|the front desk|room service|housekeeping|to check out|a wake up call|the
        restaurant|the spa|valet parking|local attractions|an outside line|the concierge|conference rooms|laundry""",
    'internet': """billing|to report an outage|new service|slow connections|wireless setup|television|to move your
        service|technical support|your password|email problems|equipment returns|to upgrade your plan|mobile phones""",
    'office': """sales|support|accounting|a list of extensions|english|spanish|french|the company directory|our
        address|our fax number|office hours|the operator|jobs|press inquiries|directions to our office|all other
        questions""",
    'mailbox': """new messages|old messages|mailbox options|to change folders|to record your name|advanced options|
        to exit|to send a message|greetings|to dial a number|help|to hear the date and time|to change your password""",
    'town': """trash collection|parking permits|property taxes|the library|road work|water and sewer|building
        permits|animal control|the police|the mayor's office|schools|voting information|bus schedules|park
        reservations""",
    'opening': """welcome to {company}|thank you for calling {company}|you have reached {company}|main menu|hello|||
        please (choose from/listen to) the following options|our menu has changed|{company}|please listen carefully""",
    'ending': '||{end}',
    'month': '|'.join(MONTHS),
    'weekday': '|'.join(DAYS),
    'day': '{weekday}|{weekday}|{weekday}|{weekday} (morning/afternoon/evening)',
    'duration': '{count second}|{count minute}|{count minute}|{count minute}|(one hour/two hours/half an hour)|'
    'an hour and a half|a (minute/moment/few minutes/day)|{number 20} (minutes/hours/days)',
    'span': '{count second}|{count minute}|{count hour}|{count day}|{count week}|{count month}|{count year}',
    'money': '{count dollar}|{count dollar} and {count cent}|{count dollar} and {count cent}|{count cent}|'
    '{amount} dollars|{amount} (pounds/euros)',
    'sign': SIGNS,
}  # fmt: skip
