--[[
  Read registrations from the arguments of a script, and check them.

  A registration consists of these arguments:
    request_id        id of the registration: a call repeated with it gets the first result and changes nothing
    reply_ttl         the milliseconds for which that result is kept
    name              the worker's name
    heartbeat_ttl     the expiration of its heartbeat in milliseconds; '' for a worker that sends no heartbeats
    speed             relative to other workers; 0 only for a worker without models, such as a cluster without workers
    queue_length      the number of requests that it is running or has waiting
    multimodal        '1' if it is multimodal, otherwise '0'
    models            a JSON array of distinct names
    models_digest     a digest of the set of its models; '' if there are fewer than two
    capacity          how many requests it runs at once; '' if it does not report that
    default_capacity  the capacity for its models according to the settings; '' if there is none
    registered_by     the name of the token that registers it; '' without a token
    engine            what controller/domain/engine.py writes of an inference engine; '' for a worker of FastChat's
                      protocol
  A script may add others, which are checked here as well:
    registration      the number of a registration
    age               the milliseconds since the worker reported its state
    draining          '1' if it is draining, otherwise '0'
    polled            '1' if it has answered a status poll, otherwise '0'

  Input:
    first  the number of the first argument
    added  an array of the names of the added arguments

  Output: an array of tables with these names, and nil; or nil and the text of an error. heartbeat_ttl, capacity and
  default_capacity are numbers or nil; reply_ttl, queue_length and age are numbers; draining is '1' or nil; models is an
  array, and the text is models_json.
]]
--- @include "argument_groups"
--- @include "finite_number"
--- @include "whole_number"
local function read_registrations(first, added)
  local names = { "request_id", "reply_ttl", "name", "heartbeat_ttl", "speed", "queue_length", "multimodal", "models",
    "models_digest", "capacity", "default_capacity", "registered_by", "engine", unpack(added) }

  local function check(registration)
    local this = registration
    local has_ttl, has_capacity = this.heartbeat_ttl ~= "", this.capacity ~= ""
    local has_default = this.default_capacity ~= ""
    this.reply_ttl = whole_number(this.reply_ttl, 1)
    this.heartbeat_ttl = whole_number(this.heartbeat_ttl, 1)
    this.queue_length = whole_number(this.queue_length, 0)
    this.capacity = whole_number(this.capacity, 1)
    this.default_capacity = whole_number(this.default_capacity, 1)
    this.age = whole_number(this.age or "0", 0)
    this.models_json, this.models = this.models, cjson.decode(this.models)
    local speed = finite_number(this.speed)
    local draining, polled = this.draining or "0", this.polled or "0"
    this.draining = draining == "1" and "1" or nil
    for _, model in ipairs(this.models) do
      if type(model) ~= "string" then
        return "INVALID model"
      end
    end
    if has_ttl and not this.heartbeat_ttl then
      return "INVALID heartbeat expiration"
    elseif not speed or (speed == 0 and #this.models > 0) then
      return "INVALID speed"
    elseif not this.queue_length then
      return "INVALID queue length"
    elseif this.multimodal ~= "0" and this.multimodal ~= "1" then
      return "INVALID kind of worker"
    elseif (has_capacity and not this.capacity) or (has_default and not this.default_capacity) then
      return "INVALID capacity"
    elseif (this.models_digest == "") ~= (#this.models < 2) then
      return "INVALID digest"
    elseif not this.age or not this.reply_ttl then
      return "INVALID time"
    elseif (draining ~= "0" and draining ~= "1") or (polled ~= "0" and polled ~= "1") then
      return "INVALID state"
    end
    return nil
  end

  local registrations = argument_groups(first, names)
  if not registrations or not registrations[1] then
    return nil, "INVALID arguments"
  end
  for _, registration in ipairs(registrations) do
    local problem = check(registration)
    if problem then
      return nil, problem
    end
  end
  return registrations, nil
end
