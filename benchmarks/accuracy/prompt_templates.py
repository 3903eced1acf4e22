"""Templates of what telephone systems say; prompts.py fills their slots, which are explained in prompt_words.py."""

FRAGMENTS = """to {do}|to {do}|to {do}|to {do} {press}|to {do} {press}|{press} to {do}|{press} to {do}|or {press}|
    {press} for {department}|for {department}|for {department} {press}|for {bank} {press}|for {airline}|for
    {clinic}|for {shop} {press}|for {hotel}|for {internet} {press}|for {office}|for {town} {press}|for {mailbox}
    {press}|followed by {mark}|then (press/dial) {key}|and then {press}|when (you are/) (done/finished/ready)
    {press}|you have|you have {count {folder} message}|you have {count {thing}}|there (are/were)
    (currently/now/only/) {plural}|there are (no/no more/several/too many) {plural}|(no/no more/no new/one
    more/another/any other) {thing}|in the (mailbox/office/account/name/directory) of|in the
    (mailbox/directory/queue/conference) of {person}|in the {folder} folder|(from/to) the {folder} folder|
    (message/call/fax/callback) (from/for/number/to)|(from/to/at/for) (extension/phone
    number/mailbox/channel/room/account) (number/)|(from/to/at) extension {digits 3}|is {status}|is
    (now/currently/still/already/not) {status}|are (now/currently/no longer) {status}|was {done}|has been {done}|has
    (already/not yet/just/successfully) been {done}|(cannot/could not/will/must/may/can) be {done}|{subject} is|
    {subject} (was/has/will/cannot/has been/is not)|(the/your) {thing} (number/name/list/status/settings)|
    (the/your/this/that/each/every/any) {thing}|(the/your) (first/last/next/previous/current/new/old) {thing}|
    (at/after/before) {sound}|at {sound} please|{polite}|{polite} {person}|{end}|(with/on/by/at) {agent}|
    (before/after/by/until/since/at) {clock}|(on/until/by/since/before) {day}|in (about/less than/more than/)
    {duration}|(for/within/after) {duration}|(please/) enter (the/your/a new) {code}|your {code} (is/was/followed
    by)|(the/your) (current/old/new/last/default) {code}|(enter/say/dial/repeat/confirm) the {code} (now/again/of
    the {thing})|(call/line/voice/queue/agent/user/system/channel/server/network/account/trunk/group/caller/room)
    (status/number/name/list/report/monitor/timeout/error/settings/limit/type/volume/options/log/
    manager/time/code/mode/test/failure)|
    (new/old/next/last/local/remote/active/default/invalid/private/public/internal/external/main) {thing}|(technical
    support/customer service/front desk/main menu/operator assistance/directory assistance/emergency
    services/account balance/area code/phone book/voice mail system/dial tone/busy signal/caller id name)
    (is/for/of/and/please)|(you are/you are now/you will be/we are/he is/she is/they are/callers are) {status}|
    caller number {number 40} in|(caller/participant/person/agent/member)s (in the {thing}/are waiting/on this
    line/ahead of you/who have joined)|(joined/left/entered/is no longer in/is alone in/was removed from) the
    (conference/queue/meeting/room/call/system)|(the last/the next/your last/an incoming/a missed/a forwarded/an
    unanswered) (call/caller/message) (was/is/came) (from/at/on/)|press|press and hold|please (hold/wait/hang
    up/listen)|please (select/choose/confirm/check/repeat) (the/your) {thing}|(please/) (say/spell/record/state)
    your (first/last/full) name|(does not/did not/do not/will not) (answer/match/exist/respond/accept calls/have a
    mailbox/work/allow this)|and|or the (letter/number/extension) (of/for)|which {thing}|{number 100} (of/out
    of/or/to/more than/and)|(about/exactly/at least/more than/less than) {number 1000}|
    (letters/digits/words/characters) of (the/your/his/her) (name/{code}/company/street/party)|{feature} is
    (on/off)|(connected to/connecting to/connecting you to/transferring to/calling/call from/logging in to)
    {department}|(sent/saved/received/recorded/left/called) (on/yesterday/today) at|(sent/received/recorded) {day}
    at {clock}|{city} (office/area/time)|(north/south/east/west) (side/wing/entrance/bound)|
    (first/second/third/ground/top) floor|(not/no longer/currently/already/temporarily/always/never/now) {status}|
    (for/from/with/to) {person}|for {company}|extension {digits 3}|room {digits 3}|
    (channel/caller/line/option/mailbox/conference/box) {number 50}|{greeting}|{feature}|(enter/with) {feature}|
    {feature} (activated/deactivated/cancelled/has been {done})|{weather}|{why}|{why} we|the
    (time/date/number/price/balance/code/address/temperature/total/difference) (is/was/will be/in {city} is)|
    (hours/minutes/seconds/days/weeks/rings) (ago/remaining/left/later/or more/from now)|{city} and {city}|{soon}"""

NUMBERS = """{number 100}|{number 1000}|{number 1000}|{number 10000}|{number 1000000}|{number 9000000}|{number
    9000000000}|minus {number 60}|{ordinal}|{ordinal}|{ordinal 1000}|{clock}|{clock}|{clock}|{day}|{date}|{date}|
    {date}|{date} {year}|{year}|{year}|{date} at {clock}|{day} at {clock}|{day} {date}|{date} {year} {clock}|
    {duration}|{span}|{span}|{count hour} and {count minute}|{count minute} and {count second}|{money}|{money}|
    {money}|{digits 3}|{digits 4}|{digits 5}|{digits 7}|{digits 7}|{digits 10}|{digits 10}|one {digits 10}|extension
    {digits 4}|area code {digits 3}|{letters 3}|{letters 4}|{letters 5}|{letters 2} {digits 4}|{nato 2}|{nato 3}|
    {nato 4}|{nato 2} {digits 3}|{spelling}|{spelling}|{number 100} percent|{number 100} point {digits 1}|{digits 2}
    {sign}|{sign}|{sign} {digits 4} {sign}|{letters 2} {sign} {letters 2}|{number 110} degrees|flight (number/)
    {letters 2} {digits 3}|gate {letters 1} {number 50}|{number 3000} {street} (street/avenue/road)|version {number
    20} point {number 20}|{number 20} (plus/minus/times/divided by) {number 20}|w w w dot {first} {last} dot
    (com/org/net)|{first} dot {last} at (mail/{street}) dot (com/net)|{number 256} dot {number 256} dot {number 256}
    dot {number 256}|{number 30} (minutes/seconds) (past/to) {number 12}|room {digits 3}|(ticket/order/invoice)
    {digits 6}|(double/triple) {digit} {digits 4}|{digits 3} (double/triple) {digit}|the {ordinal} of {month}|
    ({number 12}/half/a quarter) (past/to) {number 12}|{number 12} o'clock|{count {thing}}|{count {folder} message}|
    serial number {letters 2} {digits 6}|{money} (on/by/since) {date}|between {number 9} and {number 90}|{number 24}
    hundred hours"""

# by place of use; two of a place may come one after the other
SENTENCES = {
    'voicemail': """you have {count {folder} message} (and {count {folder} message}/in your mailbox/)|you have no
        {folder} messages|{count {folder} message} from {person}|your mailbox is (almost/nearly/) full please delete
        some messages|the mailbox of {person} is full and cannot accept (any more/new) messages|{person} is {status}
        please leave a message after {sound}|(please/) leave (your name and number/a message/a short message) after
        {sound} and (i/we/someone) will (call you back/return your call) {soon}|you have reached the
        (voicemail/mailbox) of {person} at extension {digits 4}|this message was left {day} at {clock} by {person}|
        message {number 50} received on {date} at {clock}|your {greeting} has been {done}|after {sound} (say/record)
        your {greeting} then press {mark}|to {do} press {key} or press {key} to {do}|your message has been (sent
        to/forwarded to/saved for) {person}|(end/start) of message {number 30}|there are no messages in the {folder}
        folder|to move this message to the {folder} folder press {key}|your {code} must have at least {number 12}
        digits|the message is {duration} long|messages are kept for {duration} and then deleted|hi this is {first} i
        can't come to the phone right now so please leave (a message/your number)|hello this is {first} {last} i am
        (out of the office/on vacation) until {day} please call {department}|your greeting is too (short/long)
        please record it again|you did not record anything please try again after {sound}|this mailbox does not
        (exist/accept messages from outside)""",
    'conference': """you are the (first/only/last/{ordinal}) (caller/person/participant) in this
        (conference/meeting)|there are {count participant} in the (conference/room/meeting)|{person} has
        (joined/left/entered) the (conference/meeting/call)|the conference (starts/ends/will begin/will end) (at
        {clock}/in {duration})|this (conference/call/meeting) is (being recorded/locked/full/private/about to end)|
        the (moderator/host/organizer) has (muted/unmuted/locked/ended/left) (all lines/the conference)|please enter
        your conference (number/code/id) followed by {mark}|please wait for the (host/moderator/organizer) to
        (arrive/let you in/start the meeting)|conference room {number 999} is {status}|you have been
        (muted/unmuted/removed/disconnected) by the (host/moderator)|your line is {status} press {key} to {do}|to
        {do} press {key} to {do} press {key}|all participants (are now muted/have left/can now speak)|the recording
        of this meeting has (started/stopped/been saved)|say your name after {sound} to be announced to the
        (meeting/group)|your conference is scheduled for {day} {date} at {clock}|no one else is here yet so you will
        hear music|the meeting has been extended by {duration}""",
    'queue': """{agentsbusy} (currently/now/still/) (busy/helping other callers/on other calls) please (hold/stay on
        the line/remain on the line/call back later)|your call is (very/) important to us please (hold/stay on the
        line)|you are (now/currently/) (number {number 40}/caller number {number 40}/{ordinal}/next) in (line/the
        queue)|the (expected/average/approximate) (wait/waiting time/hold time) is (about/less than/more than)
        {duration}|there are {count caller} ahead of you|your call will be answered {soon}|we will call you back
        {soon} at {phone}|to keep your place in line and be called back press {key}|calls (may be/are)
        (recorded/monitored) for (quality/training/quality and training) purposes|thank you for
        (holding/waiting/your patience) {agentsbusy} still busy|we are experiencing longer wait times than usual
        {why}|if you (would like/prefer/want) to {do} press {key}|did you know that you can (pay your bill/track
        your order/change your address) on our website|please have your {code} ready|an agent will be with you
        {soon}|the queue for {department} is {status}|we apologize for the (delay/wait/inconvenience)|while you wait
        (say/tell us/enter) your {code}""",
    'agents': """please enter your (agent number/agent id/password/extension) (and press/followed by) {mark}|agent
        {digits 4} is {status}|you are now (logged in to/logged out of/paused in) the {department} queue|agent
        {person} has {count call} today|you have been logged (in/out) {why}|this call is from the {department}
        queue|incoming call for {department} from {phone}|press {key} to accept the call or {key} to (reject it/send
        it to voicemail)|the caller has been waiting for {duration}|{count caller} waiting in the {department}
        queue|your (shift/break/session) (starts/ends) at {clock}|wrap up time is {number 120} seconds|a supervisor
        is (listening to/monitoring/joining) this call|you have missed {count call}|to {agentdo} press {key}|your
        status has been set to {status}|enter the reason code for your (pause/break) then press {mark}""",
    'transfer': """please (hold/wait/stand by) while (i transfer/we transfer/we connect) (you/your call) to
        {department}|transferring (you/your call/the call) to {department}|your call is being
        (transferred/forwarded/connected) to {department}|extension {digits 4} is {status}|i am sorry extension
        {digits 4} is {status}|the (person/party) you (called/dialed/want to reach) is {status}|please
        (dial/enter/say) the extension (now/of the person you want)|(please/) try {department} at extension {digits
        4}|nobody (answered/picked up/is available) in {department}|if you know your party's extension (dial it
        now/you may dial it at any time)|the call is parked at (slot/extension/space) {digits 3}|{person} please
        pick up line {number 20}|the call to {person} could not be (transferred/completed/connected)|one moment
        (please/) i will (try/call/find) {person}|we are connecting you with {person} in {department}|please dial
        nine for an outside line""",
    'forwarding': """(all/your) calls (are now forwarded/will be sent/are sent) to (voicemail/{phone}/extension
        {digits 4})|{feature} is now (on/off/enabled/disabled/active)|{feature} (has been/was)
        (activated/deactivated/cancelled/set)|please enter the number that your calls should be forwarded to|to
        (activate/deactivate/cancel/check) {feature} (dial/press) star {number 99}|you have (turned on/turned
        off/activated/removed) {feature} (for this line/for extension {digits 3}/)|calls will ring at your
        (desk/mobile/home phone) for {number 60} seconds first|{feature} is not available on your (line/phone/plan)|
        your speed dial number {number 99} is (set to {phone}/empty/now changed)|your wake up call is set for
        {clock}|this is your (wake up call/reminder) it is {clock} and the weather is {weather}|the last number
        (that called/you dialed) was {phone}|to call (back/this number/the last caller) press {key}|this feature
        (has been/is) (blocked/disabled) by your administrator|the number {phone} was (added to/removed from) your
        (list/blocked numbers/favorites/directory)""",
    'screening': """you have (a call/an incoming call/a collect call) from {person}|call from (an unknown
        number/{phone}/{company}) press {key} to accept|who may i say is calling|please say your name (and company/)
        after {sound}|the (caller/person) did not (say/leave/record) a name|this (number/person/line) does not
        accept (anonymous/private/unknown/sales) calls|to (block/allow) calls from this number press {key}|hold on i
        will see if {first} is (in/available/free)|the caller's name is {person}|please unblock your caller id and
        call again|{first} is {status} and will call you back {soon}|you have a collect call from {first} will you
        accept the charges|the caller hung up before leaving a message""",
    'errors': """(i'm/i am/we are) sorry (i/we) did not (understand/hear/get) (that/you/your answer/your choice)|
        (i'm sorry/sorry) that is not a valid (extension/choice/option/{code})|the {code} you (entered/dialed/said)
        is (not valid/incorrect/not in our system/too long/too short)|you have (made/entered) too many
        (mistakes/wrong numbers/invalid choices) (goodbye/please call again later)|the number (you dialed/you have
        called/{phone}) (is no longer in service/has been changed/has been disconnected/does not exist/is not
        reachable)|your call (cannot/could not) be (completed/connected) (as dialed/at this time/{why})|all
        (lines/circuits/channels/operators) are (busy/in use) please (try again/call) (later/in {duration})|an error
        (has occurred/happened) please (try again/hang up and dial again)|our (system/website/computer/office
        network) is (down/not available/being updated) {why}|the system will (restart/shut down/be back) in
        {duration}|please check the {code} and (try/dial/enter it) again|that was not a valid entry you have {count
        try} left|(access/permission) denied|you do not have permission to {do}|the {thing} could not be {done}
        {why}|{subject} has been {done}|{subject} cannot be {done}|{subject} will be {done} {soon}|{subject} is
        {status}|are you still there|we did not receive (any/a/your) (answer/input/response)|the new number is
        {phone}|{thing} {number 99} (was not found/failed/timed out)|invalid {code} (please try again/goodbye/)""",
    'hours': """(our/the) (office/store/clinic/shop/front desk) is (open/closed) (from {clock} to {clock}/on
        {day}/{why}/{period})|(our/regular/business/opening) hours are {day} (through/to) {day} from {clock}
        (to/until) {clock}|we are (open/closed) (on {day}/{period}/for the holiday/until {clock}/every {weekday}
        after {clock})|please call (back/again) (during business hours/on {day}/after {clock}/tomorrow)|you have
        reached {company} our office is closed {period}|we will reopen on {day} {date} at {clock}|the (time/local
        time) (is/in {city} is) (exactly/now/) {clock}|at {sound} it will be {clock} and {number 60} seconds|today
        is {day} {date} {year}|{department} (is open/opens/closes) at {clock}|for emergencies (call/dial/please
        call) {phone}|we are located at {number 900} {street} street in {city}|our (fax/new/main) number is {phone}""",
    'weather': """the (weather/forecast) for {city} {period} is {weather}|{period} expect {weather} with (a high/a
        low/highs) of {number 100} degrees|it is (currently/now) {number 100} degrees (and/with) {weather} in
        {city}|the chance of (rain/snow/storms) is {number 100} percent {period}|winds from the
        (north/south/east/west) at {number 60} miles per hour|humidity is {number 100} percent and the pressure is
        (rising/falling/steady)|sunrise is at {clock} and sunset at {clock}|a storm warning is in effect for {city}
        until {clock}|the temperature (outside/in the server room/in {city}) is {number 110} degrees|roads
        (near/around) {city} are (icy/closed/clear/flooded)|high tide is at {clock} and low tide at {clock}""",
    'bank': """your (current/available/checking/savings) balance is {money}|a (payment/deposit/withdrawal/check) of
        {money} (was made/posted/cleared) on {date}|your payment of {money} is due (on {date}/{day})|please enter
        the last four digits of your (card/social security number/account)|your card ending in {digits 4} has been
        (activated/blocked/replaced)|the last transaction was {money} on {date} at {company}|your account is {number
        90} days (overdue/past due)|to transfer money between accounts press {key}|the interest rate is {number 12}
        point {number 9} percent|your calling card has {money} (left/remaining)|you have {duration} (remaining/left)
        for this call|thank you for your payment your confirmation number is {letters 2} {digits 4}|for your
        security we need to verify your {code}|your credit limit is {money}|the exchange rate for (euros/pounds/yen)
        is {number 2} point {digits 4}|a fee of {money} (applies/will be charged)""",
    'travel': """flight {number 999} (to/from) {city} is (on time/delayed/cancelled/boarding/delayed by {duration})|
        flight {number 999} will (depart/leave/arrive) at {clock} (from/at) gate {letters 1} {number 60}|your
        reservation number is {letters 3} {digits 3}|the (train/bus/ferry/shuttle) to {city} (leaves/departs) (at
        {clock}/every {number 30} minutes/from platform {number 20})|please (say/tell me) the city you are (leaving
        from/traveling to)|a taxi will pick you up at {number 500} {street} street in {duration}|your bag was
        (found/sent) and will be delivered {period}|you have {number 90000} frequent flyer miles|parking is
        (full/free/{money} per hour) on level {number 8}|your parking (session/permit) (ends/expires) at {clock}|
        your room is ready the room number is {digits 3}|checkout is at {clock} and breakfast starts at {clock}|we
        have a {first} {last} arriving {day} for {count night}|did you say {city}|you want to travel from {city} to
        {city} is that (right/correct)|traffic is (heavy/light/slow) on the road (to/into) {city}|all trains
        (to/from) {city} are delayed {why}""",
    'clinic': """(this is/hello this is) {company} calling to (confirm/remind you of) your appointment on {day}
        {date} at {clock}|your appointment (with doctor {last}/) is (on {day} at {clock}/confirmed/cancelled)|if
        this is (a medical/an/a life threatening) emergency (hang up and dial nine one one/please hang up and call
        nine one one)|your prescription number {digits 6} is (ready/being filled/out of refills)|doctor {last} is
        (away/out/fully booked) (until {date}/this week)|your test results are (ready/not ready yet/normal)|please
        arrive {number 30} minutes early and bring your insurance card|the next open appointment is {day} at
        {clock}|take {count tablet} every {count hour}|to request a refill enter your prescription number|please
        hold for the nurse|the waiting room is on the {ordinal} floor""",
    'shop': """your order (number/) {digits 5} (has shipped/was delivered/is ready/is delayed/was cancelled)
        {period}|your (package/delivery/order) will arrive (on {day}/between {clock} and {clock}/in {duration})|the
        total (is/comes to/for your order is) {money}|the item you (asked for/ordered) is (out of stock/on sale for
        {money}/back ordered)|to return an item you (need/will need) your receipt and order number|your gift card
        has a balance of {money}|please enter your tracking number now|the driver is {number 20} stops away|nobody
        was home so we will try again {day}|this week only save {number 70} percent on all
        (shoes/toys/phones/furniture)|your table for {number 12} is booked for {day} at {clock}|your pizza will be
        ready in {duration}|{ordinal} in line for pickup|two tickets for the {clock} show cost {money}|would you
        like to (add/remove/change) another item|is {number 900} {street} street the right address|your technician
        will arrive between {clock} and {clock}""",
    'directory': """(please/) (enter/spell/dial) the first {number 4} letters of the (person's/) (first/last) name
        (using your keypad/)|{person} is at extension {digits 4}|there are {count name} that match your
        (entry/search)|for {person} press {key}|if this is the person you (want/are looking for) press {key}|no one
        (by/with) that name (works here/was found/is listed)|that name is spelled {letters 4}|for the letter
        {letter} press {digit}|{spelling} {spelling} {spelling}|to search by (first/last) name press {key}|what city
        and state please|the number for {company} is {phone}|did you mean {person} or {person}|say the name of the
        person or department""",
    'system': """this is a test (call/message/of the alarm system/of the emergency broadcast system)|(please/)
        (speak/say something) after {sound} to hear your own voice|the (server/gateway/database/firewall/printer) in
        {city} is {status}|the ip address is {number 255} dot {number 255} dot {number 255} dot {number 255}|alarm
        in (zone/room/building) {number 40} at {clock}|disk space is at {number 100} percent|the backup
        (started/finished/failed) at {clock} with {count error}|phone {digits 4} has been
        (registered/unregistered/rebooted)|this phone is {status}|channel {number 48} is {status}|
        (recording/playback/dictation) (started/stopped/paused/resumed) at {number 60} seconds|the file {nato 1}
        {number 99} has been {done}|press {key} to (start/stop/pause/save) (recording/dictation)|your
        (line/connection) has a delay of {number 900} milliseconds|welcome to the (demo/test/remote
        access/time/weather/dictation) (system/line/service)|the password for {nato 1} has been (changed/reset)|the
        power is back on in {city}|software version {number 20} point {number 20} is installed|monitoring the
        {ordinal} floor""",
    'menus': '{opening} {menu (bank/airline/clinic/shop/hotel/internet/office/mailbox/town)} {ending}',
}  # fmt: skip
